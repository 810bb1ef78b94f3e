"""Results as plain data: the keys that scripts use."""

from __future__ import annotations

from typing import Any

from planner.explain import binding_in_words
from planner.link import Link
from planner.memory import resident_layers
from planner.plan import Plan
from planner.timeline import StreamUse, Timeline

TIME_KEYS = ("throughput_tokens_per_s", "total_s", "prefill_s", "decode_s", "decode_step_s")
"""`decode_step_s` is the mean over the decode steps."""


def times(timeline: Timeline) -> dict[str, float]:
    """The figures that a prediction and a measurement share."""
    return {key: float(getattr(timeline, key)) for key in TIME_KEYS}


def plan_result(plan: Plan) -> dict[str, Any]:
    """What `plan --json` and `simulate --json` print."""
    p = plan.prediction
    return {
        "policy": plan.policy,
        "executable": True,
        **{key: getattr(p, key) for key in TIME_KEYS},
        "bound_total_s": plan.bound_total_s,
        "gap": plan.gap,
        "objective_total_s": plan.objective_total_s,
        "what_if": [one.model_dump() for one in plan.what_if],
        "solve_s": plan.solve_s,
        "act_share": p.act_share,
        "waves": len(plan.waves),
        "mini_batches": [
            {"wave": w, "requests": len(b.requests), "tokens": sum(len(g.requests) * g.prompt_len for g in b.groups)}
            for w, wave in enumerate(plan.waves)
            for b in wave.mini_batches
        ],
        "resident_layers": resident_layers(plan.model, plan.waves[0]),
        "memory": {name: record.model_dump() for name, record in plan.memory.items()},
        "binding": p.binding,
        "limited_by": limited_by(plan),
        "streams": {name: stream.model_dump() for name, stream in p.streams.items()},
        "why": plan.why,
        "made_for": plan.made_for.model_dump(),
    }


def limited_by(plan: Plan) -> str:
    """Which stream limits the job, in words."""
    streams = plan.prediction.streams
    return binding_in_words(streams["h2d"].busy_fraction, streams["compute"].busy_fraction)


def measured_result(plan: Plan, measured: Timeline, peak_bytes: dict[str, int], ended_early: int = 0) -> dict[str, Any]:
    """What `run --json` prints: the prediction, the measurement in the same keys, and the error of each.

    `ended_early`: requests that ended by themselves, before their planned length.
    """
    predicted = plan_result(plan)
    found = times(measured)
    return {
        **predicted,
        "measured": {
            **found,
            "binding": measured.binding,
            "generated_tokens": measured.generated_tokens,
            "ended_early": ended_early,
            "streams": streams_result(plan.hardware.link, measured),
        },
        "peak_bytes": peak_bytes,
        "error": {key: relative_error(predicted[key], found[key]) for key in TIME_KEYS},
    }


def streams_result(link: Link, measured: Timeline) -> dict[str, dict[str, float | None]]:
    """What each stream did while decoding, or in prefill where nothing is decoded; links against their profile."""
    use = measured.use("decode" if measured.decode_steps else "prefill")
    return {
        stream: {
            "busy_s": one.busy_s, "busy_fraction": one.busy_fraction, "bytes": one.nbytes,
            "bytes_per_s": one.bytes_per_s, "of_profile": of_profile(link, stream, one),
        }
        for stream, one in use.items()
    }  # fmt: skip


def of_profile(link: Link, stream: str, use: StreamUse) -> float | None:
    """The rate that a link reached while busy, over the one of its profile; None for compute, and where it was idle."""
    rates = {"h2d": link.h2d_bytes_per_s.value, "d2h": link.d2h_bytes_per_s.value}
    return use.bytes_per_s / rates[stream] if stream in rates and use.busy_s else None


def relative_error(predicted: float, measured: float) -> float:
    """(predicted - measured) / measured; 0 where both are 0."""
    return (predicted - measured) / measured if measured else 0.0

"""Results as plain data: the keys that scripts use."""

from __future__ import annotations

from typing import Any

from planner.explain import binding_in_words
from planner.operation import STREAMS
from planner.plan import Plan
from planner.timeline import Timeline

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
        "resident_layers": list(plan.waves[0].resident_layers),
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


def measured_result(plan: Plan, measured: Timeline, peak_bytes: dict[str, int]) -> dict[str, Any]:
    """What `run --json` prints: the prediction, the measurement in the same keys, and the error of each."""
    predicted = plan_result(plan)
    found = times(measured)
    phase = "decode" if measured.decode_steps else "prefill"
    use = measured.use(phase)
    return {
        **predicted,
        "measured": {
            **found,
            "binding": measured.binding,
            "streams": {s: {"busy_fraction": use[s].busy_fraction, "bytes_per_s": use[s].bytes_per_s} for s in STREAMS},
        },
        "peak_bytes": peak_bytes,
        "error": {key: relative_error(predicted[key], found[key]) for key in TIME_KEYS},
    }


def relative_error(predicted: float, measured: float) -> float:
    """(predicted - measured) / measured; 0 where both are 0."""
    return (predicted - measured) / measured if measured else 0.0

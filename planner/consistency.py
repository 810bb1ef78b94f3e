"""What must follow from what in a plan file: an edited plan is refused, with the key that no longer fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isclose
from typing import TYPE_CHECKING

from planner.agreement import DIFFERENCE, difference_in_words
from planner.decisions import act_share
from planner.errors import InputError, nearest
from planner.operation import STREAMS
from planner.policies import POLICIES
from planner.what_if import RATES, steps

if TYPE_CHECKING:
    from planner.plan import MemoryRecord, Plan

CURE = "Plan again instead of editing a plan"
CLOSE = 1e-6
"""Relative; figures are written with all their digits."""
MOST_BELOW = 0.01
"""By which a plan may seem better than its bound: what a stream runs ahead counts in jobs of very few steps."""


def check_plan(plan: Plan, budgets: Mapping[str, MemoryRecord]) -> None:
    """InputError (where: the key) for the first thing in `plan` that contradicts the rest of it.

    `budgets` are the memory records that its decisions take. The prediction is checked against itself and the
    decisions, not simulated again.
    """
    _check_made_for(plan)
    _check_policy(plan)
    _check_chunks(plan)
    _check_memory(plan, budgets)
    _check_prediction(plan)
    _check_what_if(plan)


def _check_made_for(plan: Plan) -> None:
    made = plan.made_for
    for part, wanted, found in (
        ("hardware", made.hardware_hash, plan.hardware.content_hash),
        ("model", made.model_hash, plan.model.content_hash),
        ("workload", made.workload_hash, plan.workload.content_hash),
        ("made_for.requests", made.requests, len(plan.workload)),
        ("made_for.hardware", made.hardware, plan.hardware.id),
        ("made_for.model", made.model, plan.model.name),
    ):
        if wanted != found:
            what = f"the {part} in this plan is not the one it was made for ({found}, planned for {wanted})"
            raise InputError(what, where=part, cure=CURE)


def _check_policy(plan: Plan) -> None:
    if plan.policy not in POLICIES:
        cure = f"{nearest(plan.policy, POLICIES)} {CURE}"
        raise InputError(f"unknown policy '{plan.policy}'", where="policy", cure=cure)
    allowed = POLICIES[plan.policy].forms
    batches = ((w, m, batch) for w, wave in enumerate(plan.waves) for m, batch in enumerate(wave.mini_batches))
    for w, m, mini_batch in batches:
        for g, group in enumerate(mini_batch.groups):
            wrong = next((form.name for form in group.blocks if form not in allowed), None)
            if wrong:
                place = f"decisions.waves.{w}.mini_batches.{m}.groups.{g}"
                raise InputError(
                    f"policy '{plan.policy}' has no '{wrong}', which {place} uses", where="policy", cure=CURE
                )


def _check_chunks(plan: Plan) -> None:
    for w, (record, wave) in enumerate(zip(plan.decisions_record.waves, plan.waves, strict=True)):
        sizes = [[chunk.tokens for chunk in chunks] for chunks in wave.prefill_passes]
        for name, said, largest in (
            ("chunk", record.prefill_chunk_tokens, max(map(max, sizes))),
            ("pass", record.prefill_pass_tokens, max(map(sum, sizes))),
        ):
            if said != largest:
                what = f"the largest {name} has {largest} tokens, not {said}"
                raise InputError(what, where=f"decisions.waves.{w}.prefill_{name}_tokens", cure=CURE)


def _check_memory(plan: Plan, budgets: Mapping[str, MemoryRecord]) -> None:
    written: Mapping[str, MemoryRecord] = {str(name): record for name, record in plan.memory.items()}
    for name, record in budgets.items():
        if written.get(name) != record:
            what = f"the {name} memory budget does not follow from the decisions"
            raise InputError(what, where=f"memory.{name}", cure=CURE)
        if record.planned_bytes > record.capacity_bytes:
            what = f"the decisions take {record.planned_bytes} bytes, {plan.hardware.id} has {record.capacity_bytes}"
            raise InputError(what, where=f"memory.{name}.planned_bytes", cure=CURE)


def _check_prediction(plan: Plan) -> None:
    streams = set(plan.prediction.streams)
    if streams != set(STREAMS):
        what = f"the streams are {', '.join(STREAMS)}, not {', '.join(sorted(streams)) or 'none'}"
        raise InputError(what, where="prediction.streams", cure=CURE)
    if plan.gap < -MOST_BELOW:
        what = f"a bound of {plan.bound_total_s:.9g} s is above the plan's {plan.prediction.total_s:.9g} s"
        raise InputError(what, where="bound_total_s", cure=CURE)
    for key, found, wanted, why in _figures(plan):
        if not isclose(found, wanted, rel_tol=CLOSE, abs_tol=1e-12):
            raise InputError(f"{found:.9g} is not {why}, {wanted:.9g}", where=key, cure=CURE)
    _check_agreement(plan)
    busy = {name: stream.busy_fraction for name, stream in plan.prediction.streams.items()}
    link, compute = max(busy["h2d"], busy["d2h"]), busy["compute"]
    busier = "link" if link > compute else "compute"
    if plan.prediction.binding != busier and not isclose(link, compute, rel_tol=CLOSE):
        what = f"'{plan.prediction.binding}' is not the busier of the streams, '{busier}'"
        raise InputError(what, where="prediction.binding", cure=CURE)


def _check_agreement(plan: Plan) -> None:
    """The reasons speak of the difference between prediction and objective, where there is one."""
    wanted = difference_in_words(plan.prediction.total_s, plan.objective_total_s)
    said = any(reason.startswith(wanted or DIFFERENCE) for reason in plan.why)
    if said != bool(wanted):
        what = f"{plan.objective_total_s:.9g} beside a total of {plan.prediction.total_s:.9g} s is not what `why` says"
        raise InputError(what, where="objective_total_s", cure=CURE)


def _check_what_if(plan: Plan) -> None:
    known = list(steps(plan.hardware))
    said = [one.change for one in plan.what_if]
    if said != [step.change for step in known]:
        wanted = ", ".join(step.change for step in known)
        what = f"the steps on this hardware are {wanted}, not {', '.join(said) or 'none'}"
        raise InputError(what, where="what_if", cure=CURE)
    rate = plan.prediction.throughput_tokens_per_s
    for i, (step, one) in enumerate(zip(known, plan.what_if, strict=True)):
        gained = max(one.tokens_per_s, one.at_first_tokens_per_s)
        if one.how == "not binding" and gained:
            what = f"{gained:.9g} tokens/s from more of what does not bind"
        elif step.resource in RATES and gained > rate * step.share * (1 + CLOSE):
            what = f"{gained:.9g} tokens/s from {step.share:.1%} more speed is more than that share of {rate:.9g}"
        else:
            continue
        raise InputError(what, where=f"what_if.{i}", cure=CURE)


def _figures(plan: Plan) -> Iterator[tuple[str, float, float, str]]:
    """(key, what the file says, what it should be, why) of every figure that others determine."""
    p = plan.prediction
    steps = sum(wave.decode_steps for wave in plan.waves)
    yield "prediction.total_s", p.total_s, p.prefill_s + p.decode_s, "prefill_s + decode_s"
    tokens = plan.workload.total_generated_tokens
    rate = tokens / p.total_s if p.total_s else 0.0
    yield "prediction.throughput_tokens_per_s", p.throughput_tokens_per_s, rate, f"{tokens} tokens over total_s"
    step_s = p.decode_s / steps if steps else 0.0
    yield "prediction.decode_step_s", p.decode_step_s, step_s, f"decode_s over {steps} steps"
    yield "prediction.act_share", p.act_share, act_share(plan.waves), "the share of the decisions"
    gap = 1 - plan.bound_total_s / p.total_s if p.total_s else 0.0
    yield "gap", plan.gap, gap, "1 - bound_total_s / total_s"

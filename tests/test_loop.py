"""What the decode loop asks of torch, counted: no allocation but the few that kernels make, no copy that moves nothing
on, nothing that waits for the device."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from counting import Count, CountingDevice, by_kind
from runtime_helpers import planned, ragged, with_random_forms

from planner.forms import FORMS
from planner.model import load_model
from planner.plan import Plan
from planner.schedule import Schedule
from planner.workload import Workload
from runtime.engine import Engine, random_prompts
from runtime.weights import RandomWeights

MODELS = ("opt-tiny", "llama-tiny")
NORMS = 2
"""Each gives its result memory of its own: torch has no norm that writes where it is told to."""
PER_GROUP = 4
"""Of a group's attention: two for the new token itself (products, their sums), two for the weights of the parts."""
PER_SEGMENT = 2
"""The attention kernel's output and log-sum-exp."""
EMBED, SAMPLE = 5, 4
"""Small index tensors, once for each mini-batch and step; sampling also norms and takes the largest."""
COPIES_THAT_MOVE_NOTHING_ON = ("clone", "contiguous", "_to_copy", "cat", "repeat", "repeat_interleave", "pin_memory")


def plans() -> list[tuple[str, Plan]]:
    """A mixed cache with everything streamed, and every block in a form drawn at random."""
    found = []
    for name in MODELS:
        model = load_model(name)
        job = Workload.uniform(4, 40, 12)
        mixed = planned(model, job, act_share=0.5, mini_batches=2, max_resident_layers=0, gpu_bytes=6e6)
        odd = with_random_forms(planned(model, ragged(3, gen_len=12), mini_batches=1, max_resident_layers=1), seed=1)
        found += [(f"{name}, mixed", mixed), (f"{name}, random forms", odd)]
    return found


PLANS = dict(plans())


@cache
def counted(name: str) -> dict[tuple[str, int], list[Count]]:
    plan, device = PLANS[name], CountingDevice()
    try:
        engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
        engine.run(random_prompts(plan, 0))
    finally:
        device.close()
    return by_kind(list(Schedule(plan.model, plan.decisions)), device.counts)


def of_kind(name: str, *kinds: str) -> list[Count]:
    return [count for (kind, _), counts in counted(name).items() if kind in kinds for count in counts]


@pytest.mark.parametrize("name", PLANS)
def test_transfers_and_rebuilding_allocate_nothing(name: str) -> None:
    """But for the places of a step, made once for all layers."""
    assert of_kind(name, "load_act", "load_kv", "rebuild")
    for count in of_kind(name, "load_weights", "load_act", "load_kv", "store"):
        assert not count.allocations and count.calls["copy_"] >= 1
    plan, steps = PLANS[name], {step for _, step in counted(name)}
    for step in steps:
        rebuilds = counted(name).get(("rebuild", step), [])
        later = rebuilds[len(plan.decisions.mini_batches) :]  # of all layers but the first
        assert not any(count.allocations for count in later)


@pytest.mark.parametrize("name", PLANS)
def test_a_layer_allocates_what_its_kernels_return(name: str) -> None:
    groups = max(len(batch.groups) for batch in PLANS[name].decisions.mini_batches)
    for count in of_kind(name, "forward"):
        segments = count.calls["_scaled_dot_product_flash_attention_for_cpu"]
        assert count.allocations.total() <= NORMS + groups * PER_GROUP + segments * PER_SEGMENT + 1
        assert segments <= groups * len(FORMS)
    assert all(count.allocations.total() <= EMBED for count in of_kind(name, "embed"))
    assert all(count.allocations.total() <= SAMPLE for count in of_kind(name, "sample"))


@pytest.mark.parametrize("name", [name for name in PLANS if name.endswith("mixed")])
def test_no_step_asks_for_more_than_another(name: str) -> None:
    """However long the context: the bytes of a layer's results are those of its new tokens."""
    totals: dict[str, set[tuple[int, int]]] = {}
    for (kind, step), counts in counted(name).items():
        if step > 1:
            found = sum(count.allocations.total() for count in counts), sum(count.allocated_bytes for count in counts)
            totals.setdefault(kind, set()).add(found)
    assert totals["forward"]
    assert all(len(found) == 1 for found in totals.values()), totals


@pytest.mark.parametrize("name", PLANS)
def test_nothing_waits_and_nothing_is_copied_for_nothing(name: str) -> None:
    calls: Counter[str] = Counter()
    for counts in counted(name).values():
        for count in counts:
            assert not count.synchronising
            calls += count.calls
    assert not {one: calls[one] for one in COPIES_THAT_MOVE_NOTHING_ON if calls[one]}


@pytest.mark.parametrize("name", [name for name in PLANS if name.endswith("mixed")])
def test_each_load_is_one_copy_for_each_group(name: str) -> None:
    groups = max(len(batch.groups) for batch in PLANS[name].decisions.mini_batches)
    for count in of_kind(name, "load_act", "load_kv"):
        assert count.calls["copy_"] <= groups
    assert all(count.calls["copy_"] == 1 for count in of_kind(name, "load_weights"))

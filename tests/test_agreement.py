"""The solver's objective and the simulated total: equal where nothing is left out, and else explained by its parts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers import WHOLE, decisions_of, ideal_hardware, small_model, uniform_batches, wide_model

from planner.agreement import Agreement, agreement, difference_in_words, disagreement, parts_in_words
from planner.bins import exact_bins
from planner.costs import CostModel
from planner.decisions import Decisions
from planner.epochs import make_epochs
from planner.forms import KV_GPU, KV_HOST
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.placement import MiniBatch, RequestGroup
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.simulator import simulate
from planner.waves import FoundWaves, WaveSearch
from planner.workload import Workload

LAYERS = 3
EVERY_LAYER = (WHOLE,) * LAYERS


def explained(hardware: HardwareProfile, model: ModelSpec, decisions: Decisions, objective_s: float) -> Agreement:
    costs = CostModel(hardware, model)
    return agreement(costs, decisions, simulate(costs, decisions), objective_s)


def test_where_all_is_resident_nothing_waits() -> None:
    decisions = decisions_of(uniform_batches([3, 3], 64, 20, KV_GPU), EVERY_LAYER)
    costs = CostModel(ideal_hardware(), small_model())
    total_s = simulate(costs, decisions).total_s
    found = explained(ideal_hardware(), small_model(), decisions, total_s)
    assert found.waits_s == pytest.approx(0, abs=1e-9 * total_s)
    assert found.attention_calls_s == pytest.approx(0, abs=1e-9 * total_s)
    assert found.ramp_s == 0
    assert found.total_s == pytest.approx(total_s)


def test_the_first_layer_waits_for_its_weights() -> None:
    """Link-bound, no cache to move: prefill and every step take all weights once, and compute of one layer follows."""
    model, hardware = wide_model(LAYERS), ideal_hardware(h2d_bytes_per_s=1e9)
    decisions = decisions_of(uniform_batches([2], 16, 10, KV_GPU))
    sweeps_s = 10 * LAYERS * model.layer_bytes / 1e9
    found = explained(hardware, model, decisions, sweeps_s)
    assert found.whole_blocks_s == pytest.approx(0, abs=1e-3 * sweeps_s)
    assert found.ramp_s >= model.layer_bytes / 1e9 * (1 - 1e-9)
    assert abs(found.waits_s) < 0.01 * sweeps_s  # the last layer's compute, which nothing hides


def test_the_solver_counts_the_calls_of_a_form_in_every_step() -> None:
    """The last block begins after 17 of 29 steps: until then its form takes no call."""
    call_s = 1e-4
    hardware = ideal_hardware(gemm_flops=1e12).with_values(**{"gpu.achieved.attention_call_s": call_s})
    batch = MiniBatch((RequestGroup((0, 1), 64, 30, (KV_GPU,) * 5 + (KV_HOST,)),))
    found = explained(hardware, small_model(), decisions_of([batch], EVERY_LAYER), 1.0)
    assert found.attention_calls_s == pytest.approx(-17 * LAYERS * call_s, rel=1e-3)


def test_the_formula_is_that_of_the_split_problem() -> None:
    """Its compute for equal requests is that of the exact bins, epoch by epoch."""
    work, model = Workload.uniform(4, 48, 33), small_model()
    costs = CostModel(ideal_hardware(), model)
    epochs = make_epochs([(r.prompt_len, r.gen_len) for r in work.requests])
    bins, _ = exact_bins(costs, work.requests, epochs, [[0, 1], [2, 3]])
    counted_s = sum(float(part.compute_s @ [epoch.steps for epoch in epochs]) for part in bins)
    decisions = decisions_of(uniform_batches([2, 2], 48, 33, KV_GPU), EVERY_LAYER)
    timeline = simulate(costs, decisions)
    found = agreement(costs, decisions, timeline, timeline.prefill_s + counted_s)
    assert found.whole_blocks_s == pytest.approx(0, abs=1e-6 * counted_s)


def test_a_plan_explains_a_difference_and_only_then() -> None:
    hardware, model = load_hardware("rtx4090-desktop"), load_model("opt-30b")
    plan = make_plan(hardware, model, Workload.uniform(8, 128, 8), POLICIES["hybrid"])
    said = [reason for reason in plan.why if reason.startswith("The simulation takes")]
    share = plan.prediction.total_s / plan.objective_total_s - 1
    assert len(said) == (abs(share) > 0.01)
    tiny = make_plan(hardware, load_model("opt-13b"), Workload.uniform(3, 100, 4), POLICIES["hybrid"])
    share = tiny.prediction.total_s / tiny.objective_total_s - 1
    (sentence,) = (reason for reason in tiny.why if reason.startswith("The simulation takes"))
    assert f"{abs(share):.1%} {'more' if share > 0 else 'less'}" in sentence


def test_words() -> None:
    assert difference_in_words(1.005, 1.0) == difference_in_words(0.0, 0.0) == ""
    assert difference_in_words(0.9, 1.0) == "The simulation takes 10.0% less than the solver's 1.00 s"
    assert difference_in_words(1.2, 1.0) == "The simulation takes 20.0% more than the solver's 1.00 s"
    found = Agreement(1.0, whole_blocks_s=-0.03, attention_calls_s=0.001, waits_s=0.13, ramp_s=0.02)
    text = parts_in_words(found)
    assert re.findall(r"[+-][\d.]+ m?s", text) == ["+130.0 ms", "-30.0 ms"]
    assert "(20.0 ms of it for the first layer of a phase)" in text
    costs, decisions = (
        CostModel(ideal_hardware(), small_model()),
        decisions_of(uniform_batches([2], 16, 3, KV_GPU), (0, 1, 2)),
    )
    timeline = simulate(costs, decisions)
    assert disagreement(costs, [decisions], timeline, timeline.total_s) == []


def test_a_bound_above_the_prediction_is_said_to_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the timeline of very many waves is estimated: a gap of 0 would hide it."""
    job = ideal_hardware(), small_model(), Workload.uniform(4, 100, 20), POLICIES["hybrid"]
    plain = make_plan(*job)
    run = WaveSearch.run

    def too_high(search: WaveSearch) -> FoundWaves:
        found = run(search)
        assert found
        return replace(found, bound_s=1.03 * found.timeline.total_s)

    monkeypatch.setattr(WaveSearch, "run", too_high)
    plan = make_plan(*job)
    assert plan.gap == 0 and plan.bound_total_s == plan.prediction.total_s
    assert [reason for reason in plan.why if reason not in plain.why] == [
        "The bound is 3.0% above this prediction, so the gap of 0 proves nothing: one of them is off"
    ]

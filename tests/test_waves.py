"""Jobs larger than memory: cut into waves, bounded over every cut, planned, simulated, executed one after another."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from helpers import ideal_hardware, ragged, small_model, wide_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runtime_helpers import greedy, planned, reference_model
from runtime_helpers import ragged as ragged_job

from benchmarks.planner import SEED, cases
from planner.costs import CostModel
from planner.cutting import Cut, cut
from planner.errors import InfeasibleError, InputError
from planner.forms import KV_HOST, blocks_for
from planner.hardware import HardwareProfile
from planner.model import ModelSpec, load_model
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options, Search
from planner.simulator import simulate
from planner.verification import predicted_timeline
from planner.wave_attribution import attribute_waves
from planner.wave_bound import WaveBound
from planner.wave_timeline import simulate_waves
from planner.workload import Request, Workload
from runtime.cpu_device import CpuDevice
from runtime.engine import Engine, Result, random_prompts
from runtime.weights import RandomWeights

HYBRID = POLICIES["hybrid"]
LENGTHS = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40)), min_size=1, max_size=12)
FEW = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40)), min_size=1, max_size=6)
MODEL = load_model("opt-tiny")
JOB = ragged_job(7, gen_len=20)


@given(LENGTHS, st.integers(1, 12))
def test_a_cut_takes_every_request_once_and_wastes_no_steps(lengths: list[tuple[int, int]], count: int) -> None:
    requests, count = ragged(lengths).requests, min(count, len(lengths))
    waves = cut(requests, Cut(count))
    assert len(waves) == count and all(waves)
    assert sorted(r for wave in waves for r in wave) == list(range(len(requests)))
    gens = [[requests[r].gen_len for r in wave] for wave in waves]
    assert all(max(one) <= min(later) for one, later in pairwise(gens))


def test_equal_requests_make_waves_of_two_sizes_at_most() -> None:
    sizes = [len(wave) for wave in cut(Workload.uniform(17, 64, 8).requests, Cut(5))]
    assert sorted(sizes) == [3, 3, 3, 4, 4]


@given(LENGTHS, st.integers(1, 12), st.floats(0, 1))
def test_requests_that_end_first_are_dealt_to_all_waves(
    lengths: list[tuple[int, int]], count: int, dealt: float
) -> None:
    requests, count = ragged(lengths).requests, min(count, len(lengths))
    waves = cut(requests, Cut(count, dealt))
    assert len(waves) == count and all(waves)
    assert sorted(r for wave in waves for r in wave) == list(range(len(requests)))
    # Beside those dealt, of which every wave may have some, waves are consecutive.
    order = sorted(range(len(requests)), key=lambda r: (requests[r].gen_len, requests[r].prompt_len))
    blocks = {r: blocks_for(requests[r].positions) for r in order}
    some = [sum(blocks[r] for r in order[:n]) for n in range(len(order) + 1)]
    first = max(n for n in range(len(order) - count + 1) if some[n] <= dealt * some[-1])
    ends = [[requests[r].gen_len for r in wave if r in order[first:]] for wave in waves]
    assert all(max(one) <= min(later) for one, later in pairwise(ends))
    loads = [sum(blocks[r] for r in wave if r in order[:first]) for wave in waves]
    assert max(loads) - min(loads) <= max(blocks.values())


def test_dealing_them_makes_jobs_in_waves_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all weights stay on the GPU, a wave has room to spare in its first steps."""
    case = next(islice(cases(200, SEED), 192, None))
    found = make_plan(case.hardware, case.model, case.workload, HYBRID)
    monkeypatch.setattr("planner.waves.DEALT", ())
    before = make_plan(case.hardware, case.model, case.workload, HYBRID)
    assert found.prediction.total_s < before.prediction.total_s * 0.995
    ends = [[case.workload.requests[r].gen_len for batch in wave.mini_batches for r in batch.requests]
            for wave in found.waves]  # fmt: skip
    assert all(min(later) < max(first) for first, later in pairwise(ends))


def tight(model: ModelSpec, work: Workload, room: float) -> HardwareProfile:
    """A machine whose host holds the weights and `room` of the cache."""
    cache = sum(blocks_for(r.positions) for r in work.requests) * KV_HOST.block_bytes(model)
    return ideal_hardware(
        gemm_flops=2e13, h2d_bytes_per_s=1e10, gpu_bytes=4e8, host_bytes=float(int(model.weight_bytes + room * cache))
    )


def test_more_requests_than_memory_holds_run_in_waves() -> None:
    model, work = wide_model(3), Workload.uniform(40, 500, 12)
    plan = make_plan(tight(model, work, 0.2), model, work, POLICIES["kv-only"])
    assert len(plan.waves) >= 5
    assert sum(wave.requests for wave in plan.waves) == 40
    assert plan.why[0].startswith(f"{len(plan.waves)} waves of")
    assert "host memory does not hold all of them at once" in plan.why[0]
    for record in plan.memory.values():
        assert record.planned_bytes <= record.capacity_bytes
    assert 0 <= plan.gap < 0.1


def test_many_unlike_waves_are_as_many_as_take_least_time() -> None:
    """The fewest that memory holds take three times as long: only small ones leave the GPU room for the weights."""
    model, draw = wide_model(3), random.Random(3)
    work = ragged([(draw.randint(200, 900), draw.randint(8, 60)) for _ in range(60)])
    hardware = tight(model, work, 0.12)
    found = make_plan(hardware, model, work, POLICIES["kv-only"]).prediction.total_s
    others = [make_plan(hardware, model, work, POLICIES["kv-only"], Options(waves=n)) for n in (3, 28, 45)]
    assert found <= 1.25 * min(plan.prediction.total_s for plan in others)
    assert max(plan.prediction.total_s for plan in others) > 3 * found


@given(
    st.lists(st.tuples(st.integers(100, 900), st.integers(4, 40)), min_size=6, max_size=14), st.floats(0.15, 0.6),
    st.sampled_from([2e12, 2e13]),
)  # fmt: skip
@settings(deadline=None, max_examples=3)
def test_hybrid_is_never_slower_in_waves_either(lengths: list[tuple[int, int]], room: float, flops: float) -> None:
    model, work = wide_model(3), ragged(lengths)
    hardware = tight(model, work, room).model_copy(update={"gpu": ideal_hardware(flops, gpu_bytes=4e8).gpu})
    found = totals(hardware, model, work)
    assume("hybrid" in found)
    assert found["hybrid"] <= min(found.values()) * (1 + 1e-3), found


def test_nor_where_its_waves_once_held_few_activations_for_much() -> None:
    """Few activations cost a product's latency in every step, and each choice of forms has its best number of waves."""
    case = next(islice(cases(14, SEED), 13, None))
    found = totals(case.hardware, case.model, case.workload)
    assert found["hybrid"] <= min(found.values()) * (1 + 1e-3), found


def totals(hardware: HardwareProfile, model: ModelSpec, work: Workload) -> dict[str, float]:
    """Predicted seconds of every policy that has a plan, cut into waves where that is best."""
    found = {}
    for name in ("hybrid", "kv-only", "act-only", "resident"):
        try:
            found[name] = make_plan(hardware, model, work, POLICIES[name]).prediction.total_s
        except InfeasibleError:
            continue
    return found


def test_every_wave_has_as_many_mini_batches_as_asked_for() -> None:
    lengths = [(100, 8), *((120 + i, 9) for i in range(9)), (900, 10), (905, 11), (910, 12)]
    hardware = ideal_hardware(gemm_flops=2e13, h2d_bytes_per_s=1e10, gpu_bytes=8e8, host_bytes=2e9)
    plan = make_plan(hardware, wide_model(3), ragged(lengths), HYBRID, Options(waves=5, mini_batches=3))
    assert [len(wave.mini_batches) for wave in plan.waves] == [min(3, wave.requests) for wave in plan.waves]


def test_a_request_that_no_wave_holds_is_refused() -> None:
    model, work = wide_model(3), Workload((Request("small", 20, 4), Request("large", 3000, 4)))
    with pytest.raises(InfeasibleError, match=r"a single request of 3000 \+ 4 tokens|shorten the request"):
        make_plan(tight(model, work, 0.3), model, work, POLICIES["kv-only"])


@given(
    FEW, st.sampled_from(list(POLICIES)), st.sampled_from([2e11, 2e13]), st.sampled_from([1e9, 2.5e10]),
    st.floats(0.2, 1.5),
)  # fmt: skip
@settings(deadline=None, max_examples=4)
def test_no_cut_beats_the_bound(
    lengths: list[tuple[int, int]], policy: str, flops: float, link: float, room: float
) -> None:
    """Every number of waves, each wave planned by itself and simulated."""
    model, work = small_model(layers=3), ragged(lengths)
    cache = sum(blocks_for(r.positions) for r in work.requests) * KV_HOST.block_bytes(model)
    hardware = ideal_hardware(
        gemm_flops=flops, h2d_bytes_per_s=link, gpu_bytes=float(int(4e6 + room * cache)), host_bytes=1e10
    )
    costs = CostModel(hardware, model)
    bound = WaveBound(Search(costs, work, POLICIES[policy].forms, Options()))
    whole = bound.of_whole(1, len(work))
    for count in range(1, len(work) + 1):
        try:
            plan = make_plan(hardware, model, work, POLICIES[policy], Options(waves=count))
        except InfeasibleError:
            continue
        assert whole is not None
        own = bound.of(count, count)
        assert own is not None
        assert len(plan.waves) == count
        assert whole.total_s <= own.total_s * (1 + 1e-6)
        assert own.total_s <= plan.prediction.total_s * (1 + 1e-6)
        assert plan.bound_total_s <= plan.prediction.total_s * (1 + 1e-9)


@given(FEW, st.floats(0.1, 1.2))
@settings(deadline=None, max_examples=4)
def test_no_wave_is_beyond_a_budget_and_every_request_runs_once(lengths: list[tuple[int, int]], room: float) -> None:
    model, work = wide_model(2), ragged(lengths)
    hardware = tight(model, work, room)
    try:
        plan = make_plan(hardware, model, work, HYBRID)
    except InfeasibleError:
        assume(False)
        return
    numbers = sorted(r for wave in plan.waves for batch in wave.mini_batches for r in batch.requests)
    assert numbers == list(range(len(work)))
    assert all(record.planned_bytes <= record.capacity_bytes for record in plan.memory.values())
    assert len({wave.resident_parts for wave in plan.waves}) == 1


def in_waves(count: int, **options: object) -> Plan:
    return planned(MODEL, JOB, waves=count, **options)


def test_the_timeline_of_waves_is_theirs_one_after_the_other() -> None:
    plan = in_waves(3)
    costs = CostModel(plan.hardware, plan.model)
    apart = [simulate(costs, wave) for wave in plan.waves]
    together = simulate_waves(costs, plan.waves)
    assert len(together.spans) == sum(len(wave.spans) for wave in apart)
    assert together.prefill_s == pytest.approx(sum(wave.prefill_s for wave in apart))
    assert together.decode_steps == sum(wave.decode_steps for wave in apart)
    assert together.total_s >= sum(wave.total_s for wave in apart) * (1 - 1e-9)
    assert together.generated_tokens == sum(r.gen_len for r in JOB.requests)
    accounts = attribute_waves(plan.hardware, plan.model, plan.waves)
    assert accounts.total_s == pytest.approx(together.total_s)


def run(plan: Plan) -> Result:
    device = CpuDevice(None, None)
    try:
        return Engine(plan, device, RandomWeights(0, torch.device("cpu"))).run(random_prompts(plan, 0))
    finally:
        device.close()


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("policy", ["hybrid", "act-only"])
def test_tokens_do_not_depend_on_the_waves(count: int, policy: str) -> None:
    """Weights are loaded once; cache and buffers are carved anew from the same bytes."""
    plan = in_waves(count, policy=policy)
    assert len(plan.waves) == count
    result = run(plan)
    assert result.tokens == greedy(reference_model(MODEL, 0), random_prompts(plan, 0), JOB)
    assert result.peak_bytes["gpu"] == plan.memory["gpu"].planned_bytes


def test_a_plan_in_waves_reads_back_and_is_verified(tmp_path: Path) -> None:
    plan, path = in_waves(3), tmp_path / "plan.yaml"
    plan.write(path)
    assert read_plan(path) == plan
    assert predicted_timeline(plan, path).total_s == pytest.approx(plan.prediction.total_s)
    assert [one.change for one in plan.what_if]


@pytest.mark.parametrize(("version", "before"), [(1, "jobs ran in waves"), (2, "parts of layers stayed on the GPU")])
def test_an_old_plan_is_told_so(tmp_path: Path, version: int, before: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        in_waves(1).to_yaml().replace("schema_version: 3", f"schema_version: {version}", 1), encoding="utf-8"
    )
    with pytest.raises(InputError, match=f"from before {before}"):
        read_plan(path)


def test_permuting_requests_changes_nothing() -> None:
    model, lengths = wide_model(2), [(300, 8), (20, 8), (300, 12), (150, 8), (20, 12), (300, 8)]
    jobs = [ragged(lengths), ragged(lengths[::-1])]
    plans = [make_plan(tight(model, job, 0.4), model, job, HYBRID) for job in jobs]
    assert plans[0].prediction.total_s == pytest.approx(plans[1].prediction.total_s, rel=1e-6)
    assert len(plans[0].waves) == len(plans[1].waves)

"""The oracle: plans against closed forms, and against every other plan of small jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, islice, product

import pytest
from helpers import HOST_FORMS, ideal_hardware, ragged, small_model, wide_model
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from benchmarks.exhaustive import CLOSE, best_of_all, jobs, planned_s
from planner.composition import compose
from planner.costs import CostModel
from planner.decisions import Decisions, chunk_prompts, spreads, streams
from planner.forms import ACT_HOST, FORMS, KV_HOST, CacheForm, blocks_for
from planner.hardware import HardwareProfile
from planner.memory import gpu_lines, host_lines, planned_bytes
from planner.model import ModelSpec, load_model
from planner.placement import FORM_INDEX, MiniBatch, RequestGroup
from planner.plan import Plan
from planner.planning import make_plan
from planner.policies import POLICIES, Policy
from planner.search import Options
from planner.simulator import simulate
from planner.workload import Workload

HYBRID = POLICIES["hybrid"]
QUICK = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""A failing plan is shown as found: making it smaller takes hundreds of plans."""

# ---- closed forms --------------------------------------------------------------------------------

TABLE = [
    # OPT, prompt, ms per layer all KV, all ACT, hybrid, ACT share of hybrid
    ("opt-6.7b", 512, 64.4, 40.3, 40.3, 1.00),
    ("opt-6.7b", 1920, 182.5, 107.7, 103.1, 0.95),
    ("opt-13b", 1024, 139.3, 91.8, 86.0, 0.93),
    ("opt-30b", 512, 133.9, 94.9, 92.6, 0.98),
    ("opt-30b", 1024, 209.0, 178.4, 144.7, 0.81),
    ("opt-66b", 1024, 286.9, 293.4, 213.0, 0.72),
]
BATCH, STEP = 128, 65
"""In step 65 the context is prompt + 64 tokens, a whole number of blocks."""
STREAM_ALL = Options(max_resident_layers=0, mini_batches=1)


def balance(costs: CostModel, tokens: int) -> float:
    """x* of the docs: the cached tokens to keep as activations so that link and GPU finish together."""
    model, rate = costs.model, 25e9
    other = costs.decode_forward(BATCH, tokens).seconds
    d = model.hidden
    link = (model.layer_bytes + 4 * d * tokens) / rate
    return min(max((link - other) / (2 * d / rate + 4 * d * d / 165e12), 0.0), tokens)


def layer_ms(costs: CostModel, plan: Plan) -> float:
    ends = simulate(costs, plan.decisions).step_ends_s
    return (ends[STEP] - ends[STEP - 1]) / costs.model.layers * 1e3


@pytest.mark.parametrize(("name", "prompt", "kv", "act", "hybrid", "share"), TABLE)
def test_the_table_of_the_docs(name: str, prompt: int, kv: float, act: float, hybrid: float, share: float) -> None:
    hardware, model = ideal_hardware(), load_model(name)
    costs, work = CostModel(hardware, model), Workload.uniform(BATCH, prompt, 129)
    plan = make_plan(hardware, model, work, HOST_FORMS, STREAM_ALL)
    blocks = plan.decisions.mini_batches[0].shapes.blocks[STEP - 1]
    planned = blocks[FORM_INDEX["act@host"]] / blocks.sum()
    tokens = BATCH * (prompt + 64)
    assert planned == pytest.approx(balance(costs, tokens) / tokens, abs=0.03)
    assert planned == pytest.approx(share, abs=0.03)
    assert layer_ms(costs, plan) == pytest.approx(hybrid, rel=0.05)
    for form, printed in ((KV_HOST, kv), (ACT_HOST, act)):
        single = make_plan(hardware, model, work, Policy("single", (form,), ""), STREAM_ALL)
        assert layer_ms(costs, single) == pytest.approx(printed, rel=0.05)


def test_the_share_grows_with_weights_and_compute_and_shrinks_with_the_link() -> None:
    def share(flops: float, link: float) -> float:
        hardware = ideal_hardware(gemm_flops=flops, h2d_bytes_per_s=link)
        work = Workload.uniform(32, 400, 33)
        return make_plan(hardware, load_model("opt-13b"), work, HOST_FORMS, STREAM_ALL).prediction.act_share

    shares = [share(flops, 25e9) for flops in (20e12, 40e12, 80e12)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] - 0.1
    shares = [share(40e12, link) for link in (12e9, 25e9, 50e9)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] + 0.1


# ---- every other plan of a small job -------------------------------------------------------------


def divided(
    model: ModelSpec, work: Workload, forms: tuple[CacheForm, ...], count: int, resident: tuple[int, ...]
) -> Decisions:
    """Whole requests in one form each."""
    sizes = [blocks_for(r.positions) for r in work.requests]
    batches = tuple(
        MiniBatch(tuple(
            RequestGroup((r,), work.requests[r].prompt_len, work.requests[r].gen_len, (forms[r],) * sizes[r])
            for r in members
        ))
        for members in compose(sizes, count)
    )  # fmt: skip
    prompts = {i: r.prompt_len for i, r in enumerate(work.requests)}
    slots = 2 if streams(model, resident) else 0
    passes = chunk_prompts(batches, prompts, 2048, work.total_prompt_tokens)
    return Decisions(batches, passes, resident, slots, 2, 2)


def fitting(hardware: HardwareProfile, model: ModelSpec, work: Workload) -> Iterator[Decisions]:
    """Every number of mini-batches and amount of resident weights, and every form of whole requests, that fits."""
    alike = len(work.classes()) == 1
    requests = len(work)
    choices = combinations_with_replacement(FORMS, requests) if alike else product(FORMS, repeat=requests)
    for forms in choices:
        for count in range(1, requests + 1):
            for resident in spreads(model):
                decisions = divided(model, work, forms, count, resident)
                host = sum(line.nbytes for line in host_lines(model, decisions))
                if planned_bytes(gpu_lines(model, decisions)) > hardware.gpu.budget_bytes:
                    prompts = {i: r.prompt_len for i, r in enumerate(work.requests)}
                    longest = max(prompts.values())
                    narrow = chunk_prompts(decisions.mini_batches, prompts, longest, longest)
                    decisions = replace(decisions, prefill_passes=narrow)
                if (
                    planned_bytes(gpu_lines(model, decisions)) <= hardware.gpu.budget_bytes
                    and host <= hardware.host.budget_bytes
                ):
                    yield decisions


@st.composite
def small_jobs(draw: st.DrawFn) -> tuple[HardwareProfile, ModelSpec, Workload]:
    model = wide_model(draw(st.integers(2, 3)))
    lengths = st.tuples(st.integers(500, 3000), st.integers(8, 20))
    if draw(st.booleans()):
        work = Workload.uniform(draw(st.integers(1, 3)), *draw(lengths))
    else:
        work = ragged(draw(st.lists(lengths, min_size=1, max_size=2)))
    cache = sum(blocks_for(r.positions) for r in work.requests) * KV_HOST.block_bytes(model)
    room = draw(st.floats(0.1, 1.2)) * (cache + model.weight_bytes)
    hardware = ideal_hardware(
        gemm_flops=draw(st.sampled_from([5e12, 2e13, 6e13, 1.65e14])),
        h2d_bytes_per_s=draw(st.sampled_from([3e9, 1e10, 2.5e10])),
        gpu_bytes=float(int(4e8 + room)),
        host_bytes=1e12,
    )
    return hardware, model, work


@given(small_jobs())
@settings(QUICK, max_examples=8)
def test_no_plan_of_whole_requests_is_faster(job: tuple[HardwareProfile, ModelSpec, Workload]) -> None:
    hardware, model, work = job
    costs = CostModel(hardware, model)
    times = [simulate(costs, decisions).total_s for decisions in fitting(hardware, model, work)]
    assume(times)
    plan = make_plan(hardware, model, work, HYBRID)
    assert plan.prediction.total_s <= min(times) * 1.01
    assert plan.bound_total_s <= min(times) * (1 + 1e-6)


TIGHT = [
    # Fewer sweeps in prefill are worth more than what their buffers displace, or the other way round.
    (small_model(layers=3), [(206, 20), (351, 16)], 1.3e13, 3e9, 6e6, 0.3),
    (wide_model(3), [(2362, 19), (1818, 15)], 1.65e14, 3e9, 4e8, 0.028),
]


@pytest.mark.parametrize(("model", "lengths", "flops", "link", "fixed", "share"), TIGHT)
def test_nor_where_memory_holds_hardly_more_than_the_buffers(
    model: ModelSpec, lengths: list[tuple[int, int]], flops: float, link: float, fixed: float, share: float
) -> None:
    work = ragged(lengths)
    cache = sum(blocks_for(r.positions) for r in work.requests) * KV_HOST.block_bytes(model)
    room = share * (cache + model.weight_bytes)
    hardware = ideal_hardware(flops, h2d_bytes_per_s=link, gpu_bytes=float(int(fixed + room)), host_bytes=1e12)
    costs = CostModel(hardware, model)
    best = min(simulate(costs, decisions).total_s for decisions in fitting(hardware, model, work))
    assert make_plan(hardware, model, work, HYBRID).prediction.total_s <= best * 1.01


MISSED = (54, 101)
"""Of the benchmark: prefill's buffers and weights, or these and the forms, had to be chosen together. Plans were
0.2 and 1.3 % slower than the best."""


@pytest.mark.parametrize("number", MISSED)
def test_nor_of_jobs_of_the_benchmark_that_once_had_faster_plans(number: int) -> None:
    job = next(islice(jobs(number + 1), number, None))
    best, plan = best_of_all(job), planned_s(job)
    assert best is not None
    assert plan is not None
    assert plan[0] <= best[0] * (1 + CLOSE)

"""Shadow prices: against closed forms, against the problem solved again, and against the job planned again."""

from __future__ import annotations

from dataclasses import astuple, fields
from functools import cache

import numpy as np
import pytest
from helpers import WHOLE, ideal_hardware, small_model, wide_model
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.costs import CostModel
from planner.forms import KV_GPU
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.report import what_if_sentence
from planner.search import Found, Options, Search
from planner.shadow_prices import PricedProblem, more_of, priced, what_if
from planner.split_problem import Bin, SplitProblem
from planner.what_if import Resource, steps, with_more
from planner.workload import Workload

ALL: tuple[Resource, ...] = ("link", "compute", "gpu_memory", "host_memory")
Job = tuple[HardwareProfile, ModelSpec, Workload, str]


def search_of(hardware: HardwareProfile, model: ModelSpec, work: Workload, policy: str, count: int = 0) -> Search:
    options = Options(mini_batches=count or None)
    return Search(CostModel(hardware, model), work, POLICIES[policy].forms, options)


def assert_same(left: SplitProblem, right: SplitProblem) -> None:
    for field in fields(SplitProblem):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if field.name == "bins":
            for mine, theirs in zip(one, other, strict=True):
                for part in fields(Bin):
                    if part.name != "demands":
                        np.testing.assert_allclose(getattr(mine, part.name), getattr(theirs, part.name), rtol=1e-9)
        elif field.name == "hardware":
            assert one.to_plain() == other.to_plain()
        elif field.name == "prefill":
            np.testing.assert_allclose([astuple(size) for size in one], [astuple(size) for size in other], rtol=1e-9)
        elif isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-9), field.name
        elif field.name != "epochs":
            assert one == other, field.name


@pytest.mark.parametrize("resource", ALL)
@pytest.mark.parametrize("count", [1, 3])
def test_more_of_a_resource_is_what_the_search_would_see_on_that_machine(resource: Resource, count: int) -> None:
    """If the data of the problem ever depend on a resource in another way, prices must follow."""
    hardware, model, work = load_hardware("t4"), load_model("opt-6.7b"), Workload.uniform(24, 300, 40)
    mine = more_of(search_of(hardware, model, work, "hybrid").relaxed(count, count), resource, 0.07)
    there = search_of(with_more(hardware, resource, 0.07), model, work, "hybrid").relaxed(count, count)
    assert_same(mine, there)


# ---- closed forms ----------------------------------------------------------------------------------


def test_a_byte_of_gpu_memory_saves_its_weights_on_the_link_in_every_step() -> None:
    """Weights stream and bind, all cache is on the GPU: each byte more keeps a byte of weights there."""
    model, work = wide_model(8), Workload.uniform(4, 64, 33)
    hardware = ideal_hardware(h2d_bytes_per_s=5e9, gpu_bytes=5e8)
    search = search_of(hardware, model, work, "kv-only")
    found = PricedProblem(search.relaxed(1, 1, 1))
    price = found.price("gpu_memory")
    decode_s = 32 / 5e9 * hardware.gpu.budget_bytes
    prefill_s = 1 / 5e9 * hardware.gpu.budget_bytes  # 256 tokens do not hide a sweep over the weights
    assert price.seconds_per_share == pytest.approx(decode_s + prefill_s, rel=1e-3)
    assert found.dual_seconds("gpu_memory") == pytest.approx(decode_s + prefill_s, rel=1e-3)
    assert found.price("compute").how == found.price("host_memory").how == "not binding"
    link = found.price("link").seconds_per_share
    assert link == pytest.approx(found.optimum_s, rel=0.01)  # nothing but the link takes time


def test_compute_alone_is_worth_its_share() -> None:
    search = search_of(ideal_hardware(gemm_flops=1e11), small_model(), Workload.uniform(4, 100, 20), "hybrid")
    found = PricedProblem(search.relaxed(1, 1, WHOLE))
    assert found.price("compute").seconds_per_share == pytest.approx(found.optimum_s, rel=0.01)
    assert found.price("link").how == found.price("gpu_memory").how == "not binding"


@pytest.mark.parametrize(("lacking_share", "how"), [(0.005, "re-solved"), (0.0, "not binding"), (-0.01, "not binding")])
def test_memory_that_nearly_suffices_is_worth_what_is_lacking(lacking_share: float, how: str) -> None:
    """The link binds until all weights and cache are on the GPU: duals price a whole percent, only a part is of use."""
    model, work = wide_model(8), Workload.uniform(4, 64, 33)
    roomy = search_of(ideal_hardware(h2d_bytes_per_s=5e9), model, work, "kv-only").relaxed(1, 1)
    cache = roomy.bins[0].demand.final_blocks * KV_GPU.block_bytes(model)
    slot = model.layer_bytes - model.prefix_bytes[-2]
    weights = model.outer_bytes + model.layers * model.layer_bytes + roomy.weight_slots * slot
    needed = cache + weights + max(*(size.nbytes for size in roomy.prefill), roomy.fixed_decode_bytes)
    budget = float(round(needed * (1 - lacking_share)))
    tight = search_of(ideal_hardware(h2d_bytes_per_s=5e9, gpu_bytes=budget), model, work, "kv-only")
    found = PricedProblem(tight.relaxed(1, 1, WHOLE - 1))
    price = found.price("gpu_memory")
    assert price.how == how
    if lacking_share > 0:
        assert 0 < price.seconds_per_share < 0.6 * found.dual_seconds("gpu_memory")
        assert price.seconds_per_share == pytest.approx(found.gain_s("gpu_memory", 0.01) / 0.01)
    else:
        assert price.seconds_per_share == 0


# ---- solved again ----------------------------------------------------------------------------------

JOBS: dict[str, Job] = {
    "link-bound": (load_hardware("rtx4090-desktop"), load_model("opt-30b"), Workload.uniform(16, 256, 20), "hybrid"),
    "balanced": (load_hardware("rtx4090-pcie4"), load_model("opt-6.7b"), Workload.uniform(96, 500, 24), "hybrid"),
    "activations": (load_hardware("t4"), load_model("opt-6.7b"), Workload.uniform(24, 500, 24), "act-only"),
    "grouped": (
        load_hardware("a100-40gb"),
        load_model("llama-3-70b", "float16"),
        Workload.uniform(48, 500, 24),
        "kv-only",
    ),
}


@cache
def found_for(name: str) -> tuple[Search, Found]:
    search = search_of(*JOBS[name])
    found = search.run()
    assert found is not None
    return search, found


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("resource", ALL)
def test_prices_predict_the_relaxation_and_the_solved_again_plan(name: str, resource: Resource) -> None:
    """Within 10 % for a step of 2 %: the LP, and the objective of the exact mini-batches, whose resident weights are
    whole parts of layers."""
    search, found = found_for(name)
    hardware, model, work, policy = JOBS[name]
    count, share = len(found.decisions.mini_batches), 0.02
    problem = priced(search, found.decisions)
    predicted = problem.price(resource).seconds_per_share * share
    nothing = 2e-4 * problem.optimum_s  # the solver's own tolerance on the times compared below
    assert problem.gain_s(resource, share) == pytest.approx(predicted, rel=0.1, abs=0.1 * nothing)
    again = search_of(with_more(hardware, resource, share), model, work, policy, count).run()
    assert again is not None
    part = int(np.diff(model.prefix_bytes).max())
    whole = predicted * part / (share * hardware.gpu.budget_bytes) if resource == "gpu_memory" else 0.0
    assert found.objective_s - again.objective_s == pytest.approx(predicted, rel=0.1, abs=max(2 * nothing, whole))


@given(
    st.sampled_from(["hybrid", "kv-only", "act-only"]), st.integers(1, 4),
    st.sampled_from([2e12, 2e13, 1.6e14]), st.sampled_from([3e9, 2.5e10]), st.floats(0.15, 1.2),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_prices_are_those_of_more_and_never_negative(
    policy: str, count: int, flops: float, link: float, room: float
) -> None:
    model, work = wide_model(4), Workload.uniform(16, 400, 20)
    whole = model.weight_bytes + 16 * 419 * model.layers * model.kv_bytes_per_token_layer
    hardware = ideal_hardware(gemm_flops=flops, h2d_bytes_per_s=link, gpu_bytes=float(int(4e8 + room * whole)))
    problem = PricedProblem(search_of(hardware, model, work, policy).relaxed(count, count, 0 if room < 0.5 else WHOLE))
    for resource in ALL:
        price = problem.price(resource)
        gained = problem.gain_s(resource, 0.01)
        assert price.seconds_per_share >= 0
        assert 0.01 * price.seconds_per_share == pytest.approx(gained, rel=0.1, abs=4e-4 * problem.optimum_s)
        # Weak duality: a right-hand side's dual is never too low, but for what the solver lets both optima miss.
        if resource in ("gpu_memory", "host_memory"):
            assert problem.dual_seconds(resource) * 0.01 >= gained - 5e-5 * problem.optimum_s


# ---- in the plan -----------------------------------------------------------------------------------


def test_a_plan_says_what_more_would_bring() -> None:
    hardware, model, work, policy = JOBS["link-bound"]
    plan = make_plan(hardware, model, work, POLICIES[policy])
    assert [one.change for one in plan.what_if] == [
        "+1 GB/s of link", "+1% of compute speed", "+1 GiB of GPU memory", "+16 GiB of host memory",
    ]  # fmt: skip
    link, compute, gpu, host = plan.what_if
    rate = plan.prediction.throughput_tokens_per_s
    assert 0.5 * rate / 25 < link.tokens_per_s <= rate / 24
    assert gpu.tokens_per_s > 0 and compute.tokens_per_s < 0.01 * rate
    assert (host.tokens_per_s, host.how) == (0.0, "not binding")
    assert what_if_sentence(host, rate) == "+16 GiB of host memory: nothing, it does not bind"
    assert "it may allow fewer" in what_if_sentence(host, rate, 2)
    assert what_if_sentence(link, rate, 2) == what_if_sentence(link, rate)
    assert what_if_sentence(link, rate).startswith("+1 GB/s of link: +")


def test_two_equal_parts_one_after_the_other_gain_as_much_as_one() -> None:
    search, found = found_for("balanced")
    part = (search, found.decisions)
    once, twice = what_if([part], 10.0, 1000), what_if([part, part], 20.0, 2000)
    for one, two in zip(once, twice, strict=True):
        assert two.tokens_per_s == pytest.approx(one.tokens_per_s)
        assert two.at_first_tokens_per_s == pytest.approx(one.at_first_tokens_per_s)


def test_steps_of_a_small_machine_are_small() -> None:
    small = ideal_hardware(h2d_bytes_per_s=4e8, gpu_bytes=2e7, host_bytes=1e9)
    assert [(step.change, step.share) for step in steps(small)] == [
        ("+10% of link (40 MB/s)", 0.1), ("+1% of compute speed", 0.01),
        ("+10% of GPU memory (2 MB)", 0.1), ("+10% of host memory (100 MB)", 0.1),
    ]  # fmt: skip


def test_a_job_that_ends_with_prefill_has_prices() -> None:
    plan = make_plan(load_hardware("t4"), load_model("opt-6.7b"), Workload.uniform(8, 64, 1), POLICIES["hybrid"])
    assert len(plan.what_if) == len(ALL)

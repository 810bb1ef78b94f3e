"""Plans: what they must say for known cases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import WHOLE, small_model

from planner.errors import InfeasibleError, InputError
from planner.hardware import HardwareProfile, load_hardware
from planner.model import ModelSpec, load_model
from planner.plan import Plan, read_plan
from planner.planning import make_plan
from planner.policies import POLICIES, policy_named
from planner.schedule import Schedule
from planner.search import Options
from planner.workload import Request, Workload

Data = dict[str, Any]
SERVER, DESKTOP = load_hardware("rtx4090-pcie4"), load_hardware("rtx4090-desktop")
HYBRID = POLICIES["hybrid"]


@pytest.fixture(scope="module")
def opt_30b() -> dict[str, Plan]:
    work = Workload.uniform(128, 1024, 128)
    return {
        name: make_plan(SERVER, load_model("opt-30b"), work, policy)
        for name, policy in POLICIES.items()
        if not policy.resident
    }


def test_opt_30b_is_planned_within_a_percent_and_beats_both_single_forms(opt_30b: dict[str, Plan]) -> None:
    hybrid = opt_30b["hybrid"]
    assert 0 <= hybrid.gap <= 0.0125  # the bound counts one attention call per layer, the plan makes several
    assert hybrid.prediction.total_s < opt_30b["kv-only"].prediction.total_s / 1.2
    assert hybrid.prediction.total_s < opt_30b["act-only"].prediction.total_s / 1.2
    assert 0.5 < hybrid.prediction.act_share < 1.0
    assert opt_30b["kv-only"].prediction.act_share == 0.0
    assert opt_30b["act-only"].prediction.act_share == 1.0


def test_opt_30b_figures_belong_together(opt_30b: dict[str, Plan]) -> None:
    for plan in opt_30b.values():
        said = plan.prediction
        assert plan.bound_total_s <= said.total_s
        assert plan.gap == pytest.approx(1 - plan.bound_total_s / said.total_s)
        assert said.total_s == pytest.approx(said.prefill_s + said.decode_s)
        assert said.decode_step_s == pytest.approx(said.decode_s / 127 / len(plan.waves))
        assert said.throughput_tokens_per_s == pytest.approx(128 * 128 / said.total_s)
        for record in plan.memory.values():
            assert 0 < record.planned_bytes <= record.capacity_bytes
        assert plan.offloads
        if plan.policy != "hybrid":  # whose streams finish together
            assert said.binding == ("compute" if plan.policy == "act-only" else "link")
        assert any("stream" in why for why in plan.why)


def test_opt_30b_plans_read_back(opt_30b: dict[str, Plan], tmp_path: Path) -> None:
    plan = opt_30b["hybrid"]
    plan.write(tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_grouped_queries_leave_nothing_to_gain_and_the_plan_says_why() -> None:
    plan = make_plan(SERVER, load_model("llama-3-8b"), Workload.uniform(128, 1024, 128), HYBRID)
    assert plan.prediction.act_share == 0.0
    why = next(text for text in plan.why if "ACT" in text)
    assert why.startswith("0% ACT")
    assert "8 KV heads for 32 heads" in why
    assert "8192 bytes" in why
    assert "only 4096" in why


@pytest.mark.parametrize("gen_len", [1, 2, 32])
def test_what_fits_is_not_offloaded(gen_len: int) -> None:
    plan = make_plan(SERVER, load_model("opt-125m"), Workload.uniform(8, 128, gen_len), HYBRID)
    assert not plan.offloads
    assert any("no offload needed" in why for why in plan.why)
    assert set(plan.decisions.resident_parts) == {WHOLE} and len(plan.decisions.resident_parts) == 12
    assert {op.stream for op in Schedule(plan.model, plan.decisions)} == {"compute"}


def assert_the_cure_cures(error: InfeasibleError, hardware: HardwareProfile, model: ModelSpec, work: Workload) -> None:
    """With the memory that the message says to add, there is a plan."""
    added = dict(re.findall(r"(?:Add|and) ([0-9.]+) GB of (GPU|host) memory", error.cure))
    keys = {"host": ("host.total_bytes",), "GPU": ("gpu.memory.usable_bytes", "gpu.memory.nominal_bytes")}
    more = {key: float(gb) * 1e9 for gb, name in added.items() for key in keys[name]}
    assert more, error.cure
    data = {"host.total_bytes": hardware.host.total_bytes, "gpu.memory.usable_bytes": hardware.gpu.memory.usable_bytes,
            "gpu.memory.nominal_bytes": hardware.gpu.memory.nominal_bytes}  # fmt: skip
    roomier = hardware.with_values(**{key: data[key].value + nbytes for key, nbytes in more.items()})
    assert make_plan(roomier, model, work, HYBRID).prediction.total_s > 0


def test_a_model_too_large_for_the_host_says_by_how_much() -> None:
    with pytest.raises(InfeasibleError) as caught:
        make_plan(DESKTOP, load_model("opt-175b"), Workload.uniform(8, 512, 32), HYBRID)
    error = caught.value
    assert error.limit == "host_memory"
    assert error.missing_bytes > 0
    assert f"{error.missing_bytes / 1e9:.2f} GB more than" in str(error)
    assert_the_cure_cures(error, DESKTOP, load_model("opt-175b"), Workload.uniform(8, 512, 32))
    assert "fewer requests alone do not help" in error.cure
    # The amount is what is missing: weights that no GPU memory holds, less the host's budget.
    model = load_model("opt-175b")
    assert error.missing_bytes > model.weight_bytes - DESKTOP.gpu.budget_bytes - DESKTOP.host.budget_bytes


def test_a_model_too_large_for_the_gpu_says_so() -> None:
    tiny_gpu = SERVER.with_values(**{"gpu.memory.usable_bytes": 1.5e9})
    with pytest.raises(InfeasibleError) as caught:
        make_plan(tiny_gpu, load_model("opt-30b"), Workload.uniform(4, 128, 8), HYBRID)
    assert caught.value.limit == "gpu_memory"
    assert_the_cure_cures(caught.value, tiny_gpu, load_model("opt-30b"), Workload.uniform(4, 128, 8))
    missing = caught.value.missing_bytes
    enough = SERVER.with_values(**{"gpu.memory.usable_bytes": 1.5e9 + missing + 64e6})
    assert make_plan(enough, load_model("opt-30b"), Workload.uniform(4, 128, 8), HYBRID).offloads


def test_what_is_missing_for_a_single_request_is_enough() -> None:
    """No number of waves makes one request smaller."""
    work = Workload((Request("long", 1900, 140),))
    tight = DESKTOP.with_values(**{"host.total_bytes": 5.2e10, "gpu.memory.usable_bytes": 5e9})
    with pytest.raises(InfeasibleError) as caught:
        make_plan(tight, load_model("opt-30b"), work, HYBRID)
    assert "a single request of 1900 + 140 tokens" in str(caught.value)
    assert caught.value.limit == "host_memory"
    assert_the_cure_cures(caught.value, tight, load_model("opt-30b"), work)
    total = tight.host.total_bytes.value + caught.value.missing_bytes * 1.02 + 1e8
    assert make_plan(tight.with_values(**{"host.total_bytes": total}), load_model("opt-30b"), work, HYBRID).offloads


def test_a_workload_beyond_the_model_is_a_bad_input() -> None:
    with pytest.raises(InputError, match=r"needs 2100 positions .* has 2048"):
        make_plan(SERVER, load_model("opt-125m"), Workload.uniform(1, 2000, 101), HYBRID)


def test_more_mini_batches_than_requests_is_as_many_as_requests() -> None:
    plan = make_plan(SERVER, small_model(), Workload.uniform(3, 20, 4), HYBRID, Options(mini_batches=8, waves=1))
    assert len(plan.decisions.mini_batches) == 3


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'hybrid'"):
        policy_named("hybird")

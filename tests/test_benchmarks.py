"""README's figures are those of the committed record."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from benchmarks import crashes, efficiency, engine_docs
from benchmarks.bounds import Bound, start_delays
from benchmarks.demo import ROOT, load, table, with_table
from benchmarks.records import RESULTS
from benchmarks.simulator import job, planned, summary
from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.planning import make_plan
from planner.policies import CACHES, POLICIES
from planner.report import plan_report
from planner.schedule import Schedule
from planner.search import Options
from planner.simulator import simulate
from planner.workload import Workload


def test_readme_shows_the_record() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, load()) == readme, "run: python -m benchmarks.demo --readme-only"
    assert table(load()).splitlines()[2] in readme


def test_the_record_holds_what_the_project_promises() -> None:
    record = load()
    assert record["mean_decode_step_error"] <= 0.10
    assert record["order_holds"]
    assert {run["policy"] for run in record["policies"]} == {"hybrid", "kv-only", "act-only"}


def test_readme_shows_the_plan_that_the_command_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.split("```text\n", 1)[1].split("```", 1)[0]
    plan = make_plan(
        load_hardware("rtx4090-pcie4"), load_model("opt-30b"), Workload.uniform(128, 1024, 128), POLICIES["hybrid"]
    )
    printed = io.StringIO()
    Console(file=printed, width=100).print(plan_report(plan))
    lines = {" ".join(line.split()) for line in printed.getvalue().splitlines()}
    for line in block.splitlines():
        shown = " ".join(line.split())
        assert shown in lines or not shown or "left out" in shown or set(shown) == {"─"}, f"stale in README: {line}"


def test_the_simulator_benchmark_counts_operations() -> None:
    found = job(load_hardware("rtx4090-pcie4"), "opt-125m", 40, POLICIES["kv-only"], Options())
    assert found["operations"] > 12 * 127
    assert min(found[key] for key in ("plan_s", "simulate_s", "explain_s")) > 0
    grid = [planned("opt-125m", 40, "kv-only"), planned("opt-66b", 1920, "resident")]
    assert "2 jobs, of which 1 are feasible" in summary(found, grid, 1.0, 1)


def test_the_document_of_the_engine_shows_the_records() -> None:
    text = engine_docs.DOCUMENT.read_text()
    assert engine_docs.with_figures(text) == text, "run: python -m benchmarks.engine_docs"


def test_the_committed_crashes_lost_nothing() -> None:
    if not (RESULTS / crashes.RECORD).exists():
        pytest.skip("no record yet: python -m benchmarks.crashes")
    record = json.loads((RESULTS / crashes.RECORD).read_text())
    assert len(record["runs"]) >= 50
    assert all(one["kills"] and not one["lost"] + one["twice"] + one["differing"] for one in record["runs"])


def test_the_bound_is_below_every_prediction() -> None:
    """Bytes over rates and kernels alone: simulating adds overhead, contention and what nothing hides."""
    hardware, model = load_hardware("rtx4090-pcie4"), load_model("opt-6.7b")
    for policy in CACHES:
        plan = make_plan(hardware, model, Workload.uniform(24, 512, 6), POLICIES[policy])
        costs = CostModel(hardware, model)
        predicted, bound = simulate(costs, plan.decisions), Bound.of(costs, plan.decisions)
        assert 0 < bound.seconds <= predicted.decode_s * (1 + 1e-9)
        use = predicted.use("decode")
        moved = sum(span.nbytes for span in predicted.spans if span.step and span.stream == "h2d")
        assert bound.h2d_s == pytest.approx(moved / hardware.link.h2d_bytes_per_s.value)
        assert bound.compute_s < use["compute"].busy_s
        assert start_delays(Schedule(model, plan.decisions), predicted.spans)[0][1] < 1e-9


def test_gains_are_over_the_better_of_the_other_policies() -> None:
    taken = {"hybrid": (2.0, 2.2), "kv-only": (3.0, 3.1), "act-only": (2.5, 2.6)}
    points = [
        {"job": 0, "rebuild_over_kv": 0.6, "policy": name, "runs": [{"predicted_s": predicted, "measured_s": measured}]}
        for name, (predicted, measured) in taken.items()
    ]
    (found,) = efficiency.gains(points)
    assert (found["predicted"], found["measured"]) == pytest.approx((0.25, 2.6 / 2.2 - 1))


def test_the_grid_of_efficiency_has_points_of_every_kind() -> None:
    """By the bound under a profile of this machine: some wait for the link, some for compute, some for both."""
    assert len(efficiency.JOBS) * len(efficiency.REBUILD_OVER_KV) * len(CACHES) >= 20
    plans = [one.runs.plan for one in efficiency.cases(load_hardware(str(RESULTS / "accuracy-profile.yaml")), 1)]
    bounds = [Bound.of(CostModel(plan.hardware, plan.model), plan.decisions) for plan in plans]
    assert {bound.kind(efficiency.BALANCED) for bound in bounds} == set(efficiency.TARGETS)

"""The accuracy benchmark: out of sample, honest sums, and a committed record that holds what the project promises."""

from __future__ import annotations

import json

import pytest

from benchmarks import accuracy_docs, memory
from benchmarks.accuracy_docs import DOCUMENT, PICTURE
from benchmarks.accuracy_report import Errors, errors, memory_errors, middle
from benchmarks.grid import JOBS, PROFILE_HIDDEN, VOCAB, Point, executed_shapes, models, points
from benchmarks.records import RESULTS
from planner.hardware import load_hardware
from planner.model import load_model
from planner.scale import scaled_model
from planner.workload import Workload
from runtime import calibration
from runtime.kernels import GEMM_INNER, calibrated_shapes

RECORD = json.loads((RESULTS / "accuracy.json").read_text())
POINTS = RECORD["points"]


def test_errors_by_hand() -> None:
    found = Errors.of([(1.1, 1.0), (0.8, 1.0), (1.0, 1.0), (3.0, 0.0)])
    assert found.n == 3  # nothing measured, no error
    assert (found.mean, found.median, found.worst) == pytest.approx((0.1, 0.1, 0.2))
    assert found.bias == pytest.approx(-0.1 / 3)
    assert found.p95 == pytest.approx(0.19)


def test_the_grid_covers_what_it_says() -> None:
    grid = list(points())
    assert len(grid) >= 80
    assert {p.policy for p in grid} == {"hybrid", "kv-only", "act-only"}
    assert len({p.model.hidden for p in grid}) >= 2 and {p.model.gqa_group for p in grid} == {1, 4}
    assert min(r for r, _, _ in JOBS) <= 4 and max(r for r, _, _ in JOBS) >= 64
    assert min(p for _, p, _ in JOBS) <= 32 and max(p for _, p, _ in JOBS) >= 1000
    assert len({p.link_bytes_per_s for p in grid}) == 3 and len({p.act_share for p in grid}) == 4


def test_no_validation_shape_is_calibrated_on() -> None:
    """By inner dimension and width for the whole grid; shape by shape for plans of a part of it."""
    calibrated = {int(share * PROFILE_HIDDEN) for share in GEMM_INNER}
    for model in models():
        assert not {model.hidden, model.d_q, model.ffn} & calibrated and model.d_q != PROFILE_HIDDEN
    widths = {calibration.probe_width(job.width, PROFILE_HIDDEN) for job in calibration.JOBS}
    assert not widths & {model.hidden for model in models()}
    jobs = {(job.requests, job.prompt_len) for job in calibration.probe_jobs(PROFILE_HIDDEN, "float32")}
    assert not jobs & {(requests, prompt) for requests, prompt, _ in JOBS}
    profile = load_hardware(str(RESULTS / "accuracy-profile.yaml"))
    executed = executed_shapes(point.plan(profile) for point in list(points())[::9])
    assert executed and not executed & calibrated_shapes(PROFILE_HIDDEN)


def test_the_proof_would_find_a_shared_shape() -> None:
    """A model as wide as the profile's kernels, with a power of two of requests, repeats one of their products."""
    profile = load_hardware(str(RESULTS / "accuracy-profile.yaml"))
    model = scaled_model(load_model("opt-6.7b"), PROFILE_HIDDEN, 2, VOCAB)
    point = Point(model, Workload.uniform(64, 32, 3), "kv-only", None, 1, 5e8, 0.4)
    shared = executed_shapes([point.plan(profile)]) & calibrated_shapes(PROFILE_HIDDEN)
    assert ("gemm", 64, PROFILE_HIDDEN, 2 * PROFILE_HIDDEN) in shared


def test_the_record_is_one_of_this_grid() -> None:
    assert [p["hidden"] for p in POINTS] == [p.model.hidden for p in points()]
    assert all(p["split"] == "validate" and len(p["runs"]) >= 3 for p in POINTS)
    assert RECORD["calibrate"]["split"] == "calibrate"
    profile = load_hardware(str(RESULTS / "accuracy-profile.yaml"))
    assert RECORD["calibrate"]["profile_hash"] == profile.content_hash
    assert RECORD["machine"]["torch"] and RECORD["date"]


def test_a_point_is_its_run_in_the_middle() -> None:
    assert middle([(1.0, 2.0), (3.0, 3.0), (5.0, 4.0)]) == (3.0, 3.0)
    assert middle([(3.0, 2.0), (1.0, 1.0)]) == (1.0, 1.0)
    assert middle([(0.0, 0.0)]) == (0.0, 0.0)
    for point in POINTS:
        for key in ("decode_step_s", "prefill_s", "total_s"):
            ratios = sorted(run["predicted"][key] / run["measured"][key] for run in point["runs"])
            assert point["predicted"][key] / point["measured"][key] == ratios[(len(ratios) - 1) // 2]


def test_the_record_holds_what_the_project_promises() -> None:
    step, prefill, total = (errors(POINTS, key) for key in ("decode_step_s", "prefill_s", "total_s"))
    assert step.mean <= 0.04 and step.p95 <= 0.10 and step.worst <= 0.15
    assert prefill.mean <= 0.06 and total.mean <= 0.04
    assert all(one["median"] <= 0.05 for one in RECORD["calibrate"]["leave_one_out"])


def test_peak_memory_is_what_was_planned() -> None:
    plans = json.loads((RESULTS / memory.RECORD).read_text())["plans"]
    assert len(plans) >= 20
    for place in ("gpu", "host"):
        found = [plan[place] for plan in plans]
        assert max(abs(one["predicted"] / one["measured"] - 1) for one in found) <= 0.03
        assert all(one["predicted"] >= 0.99 * one["measured"] for one in found)
        assert memory_errors(POINTS, place).worst <= 0.03


def test_the_document_is_that_of_the_records() -> None:
    assert accuracy_docs.document() == DOCUMENT.read_text(), "run: python -m benchmarks.accuracy_docs"
    readme = accuracy_docs.README.read_text()
    assert accuracy_docs.with_figures(readme) == readme, "run: python -m benchmarks.accuracy_docs"
    assert PICTURE.stat().st_size > 10_000


def test_two_profiles_agree_or_the_machine_was_called_too_noisy() -> None:
    found = json.loads((RESULTS / "repeatability.json").read_text())
    assert found["plans"] >= 20
    assert found["median_difference"] <= 0.03 or max(found["repeatability_said"]) > 0.03
    assert all((warning is not None) == (said > 0.03) for warning, said in zip(
        found["warned"], found["repeatability_said"], strict=True))  # fmt: skip

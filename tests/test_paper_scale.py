"""The figure executed in scale: ratios, turns, out of sample, and a measurement that is broken off and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper_scale, paper_scale_report
from benchmarks.grid import PROFILE_HIDDEN
from benchmarks.paper_docs import SCALE, load
from benchmarks.paper_points import BATCH, costs_of
from benchmarks.paper_scale import POLICIES_RUN, PROMPTS, REQUESTS, ROUNDS, SHAPES, VOCAB, ScalePoint, scaled
from benchmarks.records import RESULTS
from planner.costs import CostModel
from planner.errors import InputError
from planner.hardware import HardwareProfile, load_hardware
from planner.model import load_model
from planner.scale import Ratios, scaled_model
from planner.speed import Speed
from runtime.calibration import probe_jobs

PROFILE = load_hardware(str(RESULTS / "accuracy-profile.yaml"))


@pytest.mark.parametrize(("target", "hidden", "layers"), SHAPES)
def test_scale_models_have_the_ratios_of_what_they_stand_for(target: str, hidden: int, layers: int) -> None:
    model = scaled_model(load_model(target), hidden, layers, VOCAB)
    for prompt in PROMPTS:
        hardware, job = scaled(PROFILE, model, target, prompt)
        wanted = Ratios.of(costs_of(target), BATCH * prompt)
        found = Ratios.of(CostModel(hardware, model), job.total_prompt_tokens)
        assert found.rebuild_over_kv == pytest.approx(wanted.rebuild_over_kv, rel=1e-6)
        assert found.weights_over_kv == pytest.approx(wanted.weights_over_kv, rel=0.05)  # whole blocks
        assert hidden != PROFILE_HIDDEN and "requests of" in (hardware.scale_model_of or "")
        probed = {(probe.requests, probe.prompt_len) for probe in probe_jobs(PROFILE_HIDDEN, "float32")}
        assert (REQUESTS, job.requests[0].prompt_len) not in probed


def test_every_round_runs_every_policy_of_a_point_and_each_comes_first_once() -> None:
    points = [ScalePoint(target, 1, policy, None) for target in "ab" for policy in POLICIES_RUN]  # type: ignore[arg-type]
    rounds = [[(p.target, p.policy) for p in paper_scale._in_turn(points, turn)] for turn in range(ROUNDS)]
    for order in rounds:
        assert len(set(order)) == len(points) and [target for target, _ in order] == ["a"] * 4 + ["b"] * 4
    assert {order[0][1] for order in rounds} == set(POLICIES_RUN)


class Calibrated:
    """A profiler that has measured already."""

    def __init__(self, *_: Any) -> None:
        self.round_of_turns = self.turn = lambda: None

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield

    def profile(self) -> HardwareProfile:
        return PROFILE

    def speed(self) -> Speed:
        return Speed(1.0, 1.0)


def test_a_measurement_that_is_broken_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_scale, "narrow_profiler", Calibrated)
    monkeypatch.setattr(paper_scale, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(paper_scale, "SHAPES", SHAPES[:1])
    monkeypatch.setattr(paper_scale, "PROMPTS", PROMPTS[:1])
    monkeypatch.setattr(paper_scale, "ROUNDS", 2)
    monkeypatch.setattr(paper_scale, "write", lambda name, record: tmp_path / name)
    ran: list[str] = []

    def run(point: ScalePoint, profile: HardwareProfile) -> None:
        if len(ran) == 3:
            ran.append("broken off")
            raise KeyboardInterrupt
        ran.append(point.policy)
        seconds = {"prefill_s": 2.0, "decode_step_s": 1.0, "total_s": 10.0}
        slower = {key: value * (1 + len(point.runs)) for key, value in seconds.items()}
        point.runs.append({"predicted": seconds, "measured": slower})

    monkeypatch.setattr(ScalePoint, "run", run)
    with pytest.raises(KeyboardInterrupt):
        paper_scale.measure(quick=False, again=False)
    kept = json.loads((tmp_path / "partial" / "runs.json").read_text())
    assert sum(map(len, kept["runs"].values())) == 3
    monkeypatch.setattr(paper_scale, "make_plan", None)  # plans are those of the first part
    record = paper_scale.measure(quick=False, again=False)
    assert [name for name in ran if name != "broken off"] == [
        "kv-only", "act-only", "hybridserve", "hybrid", "act-only", "hybridserve", "hybrid", "kv-only",
    ]  # fmt: skip
    assert all(len(point["runs"]) == 2 for point in record["points"])
    first = record["points"][0]
    assert first["measured"] == {"prefill_s": 4.0, "decode_step_s": 2.0, "total_s": 20.0}  # the lower one in the middle
    assert not (tmp_path / "partial").exists()
    assert "0 percentage points" not in paper_scale_report.scale_report(record)


@pytest.mark.parametrize("kept", [
    '{"spent_s": 1.0, "ru', "[]", '{"spent_s": 1.0}', '{"spent_s": 1.0, "runs": null}', '{"spent_s": -1.0, "runs": {}}',
    '{"spent_s": NaN, "runs": {}}', '{"spent_s": 1.0, "runs": {"a": [{"predicted": {}}]}}',
])  # fmt: skip
def test_what_was_not_kept_so_is_refused_before_anything_is_measured(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_scale, "narrow_profiler", None)
    monkeypatch.setattr(paper_scale, "PARTIAL", tmp_path)
    (tmp_path / "runs.json").write_text(kept)
    with pytest.raises(InputError, match=r"runs\.json: this is no measurement that was broken off\. .*--again"):
        paper_scale.measure(quick=False, again=False)


def test_gains_by_hand() -> None:
    def point(policy: str, *runs: tuple[float, float]) -> dict[str, Any]:
        pairs = [
            {"predicted": {"total_s": predicted}, "measured": {"total_s": measured}} for predicted, measured in runs
        ]
        return {"target": "a", "target_prompt_len": 1, "policy": policy, "runs": pairs}

    # Of four runs the slowest does not count, on either side.
    points = [point("hybrid", (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (5.0, 1.2))]
    points.append(point("kv-only", (1.5, 1.5), (1.5, 9.0), (1.5, 1.5), (1.5, 1.62)))
    points.append(point("act-only", (2.0, 1.9), (2.0, 1.9), (2.0, 1.9), (2.0, 1.9)))
    points.append(point("hybridserve", (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)))
    found = {gain.over: gain for gain in paper_scale_report.gains(points)}
    assert (found["kv-only"].predicted, found["kv-only"].measured) == pytest.approx((1.5, 1.54))
    assert found["kv-only"].holds and not found["act-only"].holds
    assert paper_scale_report.within(points) == 0.5


RECORD = load(SCALE)


@pytest.mark.skipif(RECORD is None, reason="python -m benchmarks.paper --execute has not been run yet")
def test_the_record_holds_what_the_project_promises() -> None:
    assert RECORD is not None
    assert {p["target"] for p in RECORD["points"]} == {target for target, _, _ in SHAPES}
    assert len(RECORD["points"]) == len(SHAPES) * len(PROMPTS) * len(POLICIES_RUN)
    assert all(p["split"] == "validate" for p in RECORD["points"]) and RECORD["calibrate"]["split"] == "calibrate"
    assert paper_scale_report.within(RECORD["points"]) >= 0.8

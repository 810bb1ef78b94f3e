"""The demo end to end, on a shape small enough to run in seconds, and the scale model that it stands on."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from planner.costs import CostModel
from planner.hardware import load_hardware
from planner.model import load_model
from planner.scale import Ratios, scaled_link, scaled_model, scaled_workload
from runtime import demo, profiler
from runtime.execution import Execution

OPT_30B, RTX4090 = load_model("opt-30b"), load_hardware("rtx4090-pcie4")


def twice_as_slow(run: Execution) -> Execution:
    """As if the machine had been busy."""
    return replace(run, plan=run.plan.model_copy(update={"hardware": run.plan.hardware.at_speed(2.0, 2.0)}))


def _text(shown: demo.Demo) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(shown.report())
    return console.export_text()


def test_scale_model_keeps_the_ratios() -> None:
    """Rebuild : K/V transfer and weights : K/V, as for OPT-30B on the 4090."""
    wanted = Ratios.of(CostModel(RTX4090, OPT_30B), 128 * 1024)
    model = scaled_model(OPT_30B, 512, 4, 2048)
    small = model.model_copy(update={"dtype": "float16"})  # the 4090 profile has no fp32 rates
    hardware = scaled_link(RTX4090, small, wanted, "opt-30b")
    job = scaled_workload(small, wanted, requests=16, gen_len=4)
    found = Ratios.of(CostModel(hardware, small), job.total_prompt_tokens)
    assert found.rebuild_over_kv == pytest.approx(wanted.rebuild_over_kv, rel=1e-6)
    assert found.weights_over_kv == pytest.approx(wanted.weights_over_kv, rel=0.03)
    assert hardware.scale_model_of == "opt-30b" and "scale-model" in hardware.id


def test_ratio_of_rebuild_is_that_of_the_formula() -> None:
    """facts: rho = 2 d B / (F e), here d B / F for fp16 multi-head attention."""
    found = Ratios.of(CostModel(RTX4090, OPT_30B), 1).rebuild_over_kv
    rate = RTX4090.gpu.gemm_rates("float16").best
    assert found == pytest.approx(OPT_30B.hidden * RTX4090.link.h2d_bytes_per_s.value / rate, rel=0.01)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"HIDDEN": 128, "LAYERS": 2, "VOCAB": 256, "REQUESTS": 4, "GEN_LEN": 4, "CURVE_GEN_LEN": 3}
    for name, value in {**small, "CURVE_SHARES": (0.0, 0.5, 1.0), "SLOTS_SHARE": 4.0}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(profiler, "ROUNDS", 1)
    shown = demo.run_demo(tmp_path / "demo", lambda done, of, text: None)
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {
        "demo.png", "profile.yaml", "results.json", "trace.json",
        "plan-hybrid.yaml", "plan-kv-only.yaml", "plan-act-only.yaml",
    }  # fmt: skip
    result = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert {run["policy"] for run in result["policies"]} == {"hybrid", "kv-only", "act-only"}
    assert [round(point["act_share"], 1) for point in result["curve"]] == [0.0, 0.5, 1.0]
    assert result["slowdowns"] == shown.slowdowns and all(slowdown > 0 for slowdown in shown.slowdowns)
    busy = replace(shown, runs=[shown.runs[0], twice_as_slow(shown.runs[0])])
    assert shown.slowdowns[0] * 2 == pytest.approx(busy.slowdowns[1])
    assert not busy.steady and "do not compare" in _text(busy)
    events = json.loads((tmp_path / "demo" / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"predicted", "measured"}
    assert shown.runs[0].tokens == shown.runs[1].tokens == shown.runs[2].tokens, "policies differ in speed, not in text"
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")

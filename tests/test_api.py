"""The names that a notebook imports: what the commands say, as objects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import LENGTHS, cli, write_small_profile

import hybridserve as hs

DOCUMENT = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
JOB: dict[str, Any] = {"requests": 8, "prompt_len": 64, "gen_len": 8}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_profile(tmp_path_factory.mktemp("api") / "small.yaml")


@pytest.fixture(scope="module")
def plan(machine: Path) -> hs.Plan:
    return hs.plan(model="opt-tiny", hardware=machine, dtype="float32", **JOB)


def words(machine: Path) -> list[str]:
    return ["--model", "opt-tiny", "--hardware", str(machine), "--dtype", "float32", *LENGTHS.split()]


def without(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import hybridserve, sys; print([m for m in ('torch', 'matplotlib', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_say_what_they_are() -> None:
    for name in hs.__all__:
        assert getattr(hs, name).__doc__, name
        assert f"`{name}" in DOCUMENT, f"docs/api.md does not name {name}"


def test_a_plan_is_what_the_command_prints(plan: hs.Plan, machine: Path) -> None:
    printed = cli("plan", *words(machine), "--json").json
    assert without(plan.result(), "solve_s") == without(printed, "solve_s")
    assert plan.throughput_tokens_per_s == printed["throughput_tokens_per_s"]
    assert str(plan.binding) in str(plan) and "gpu memory" in str(plan)
    assert repr(plan).startswith("<Plan hybrid: opt-tiny on small-cpu, 8 requests")


def test_models_profiles_and_workloads_may_be_objects(plan: hs.Plan) -> None:
    again = hs.plan(model=plan.model, hardware=plan.hardware, workload=[(64, 8)] * 8)
    assert without(again.result(), "solve_s") == without(plan.result(), "solve_s")
    other = hs.plan(model=hs.load_model("opt-tiny"), hardware=plan.hardware, dtype="float32", workload=plan.workload)
    assert other.total_s == plan.total_s


def test_a_written_plan_is_read_back(plan: hs.Plan, tmp_path: Path) -> None:
    path = plan.write(tmp_path / "plan.yaml")
    again = hs.read_plan(path)
    assert again.record == plan.record
    assert again.simulate().result() == cli("simulate", path, "--json").json
    assert again.explain().result() == cli("explain", path, "--json").json
    edited = path.read_text().replace("prefill_s: ", "prefill_s: 1")
    path.write_text(edited)
    with pytest.raises(hs.InputError, match=r"plan\.yaml: prediction"):
        hs.read_plan(path).simulate()


def test_a_comparison_is_what_the_command_prints(plan: hs.Plan, machine: Path) -> None:
    found = plan.compare("hybrid,kv-only,flexgen")
    printed = cli("compare", *words(machine), "--policies", "hybrid,kv-only,flexgen", "--json").json
    for one, other in zip(found.result()["policies"], printed["policies"], strict=True):
        assert without(one, "solve_s") == without(other, "solve_s")
    assert list(found.plans) == ["hybrid", "kv-only"] and found.best in found.found
    assert [row["policy"] for row in found.rows()] == ["hybrid", "kv-only", "flexgen"]
    assert "What limits each" in found._repr_html_()


def test_what_is_infeasible_is_a_row_of_a_comparison(plan: hs.Plan) -> None:
    found = hs.compare(
        model="opt-tiny",
        hardware=plan.hardware,
        dtype="float32",
        gpu_memory_gb=0.001,
        policies=["resident", "kv-only"],
        **JOB,
    )
    assert found.infeasible["resident"].startswith("infeasible (gpu_memory)")
    assert {row["policy"]: row["infeasible"] is None for row in found.rows()} == {"kv-only": True, "resident": False}
    assert len({frozenset(row) for row in found.rows()}) == 1, "every row has every column"


def test_a_sweep_is_what_the_command_writes(machine: Path, tmp_path: Path) -> None:
    found = hs.sweep(
        {"link.h2d": [2, 4.0], "requests": "4..8*2"}, model="opt-tiny", hardware=machine, dtype="float32",
        prompt_len=64, gen_len=8, policies=["kv-only"], workers=1,
    )  # fmt: skip
    line = [*words(machine)[:6], "--prompt-len", "64", "--gen-len", "8", "--policies", "kv-only", "--workers", "1"]
    done = cli("sweep", *line, "--set", "link.h2d=2,4", "--set", "requests=4,8", "--json")
    assert found.result() == done.json
    assert list(found.rows()[0])[:3] == ["set.link.h2d", "set.requests", "policy"]


def test_a_plan_is_swept_over_what_it_was_made_for(plan: hs.Plan, tmp_path: Path) -> None:
    found = plan.sweep({"prompt_len": [32, 64]}, workers=1)
    assert [row["policy"] for row in found.rows()] == ["hybrid", "hybrid"]
    assert found.rows()[1]["total_s"] == plan.total_s
    path = plan.write(tmp_path / "plan.yaml")
    assert hs.read_plan(path).sweep({"prompt_len": [32, 64]}, workers=1).result() == found.result()


def test_a_run_lays_measured_beside_predicted(plan: hs.Plan) -> None:
    done = plan.run(random_weights=3)
    assert [len(made) for made in done.tokens] == [8] * 8
    assert {row["quantity"] for row in done.rows()} >= {"decode_step_s", "prefill_s"}
    assert done.error["total_s"] == pytest.approx(plan.total_s / done.measured.total_s - 1)
    again = plan.run(random_weights=3, prompts=[[(5 * i + j) % 200 for j in range(64)] for i in range(8)])
    assert again.tokens != done.tokens, "prompts decide"
    assert (
        done.plot(step=2, layers=(0, 0))
        .get_axes()[1]
        .get_title(loc="left")
        .startswith("measured: step 2, layers 0 to 0")
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "opt-tinny"}, "unknown model 'opt-tinny'"),
        ({"requests": 0}, "--requests: 0 is out of range. Give a whole number from 1 to 1,000,000"),
        ({"gen_len": 2.5}, "--gen-len: 2.5 is not a whole number"),
        ({"gen_len": True}, "--gen-len: True is no number"),
        ({"gen_len": None}, "no workload: --gen-len missing"),
        ({"act_share": float("nan")}, "--act-share: nan is no number"),
        ({"workload": [(4, 4)]}, "--workload says the lengths already"),
        ({"policy": "hybird"}, "--policy: unknown policy 'hybird'. Did you mean 'hybrid'"),
        ({"policy": "flexgen"}, "--policy: 'flexgen' is another system"),
        ({"policy": "kv-only", "act_share": 0.5}, "--act-share: policy 'kv-only' has an ACT share of 0"),
        ({"gpu_memory_gb": 50}, "--gpu-memory-gb: 50 GB is more than"),
        ({"model": ""}, "unknown model ''"),
        ({"requests": 10**400}, "--requests: a number of hundreds of digits is out of range"),
        ({"policy": None}, "--policy: unknown policy 'None'"),
        ({"hardware": 4090}, "--hardware: int is neither a name nor a HardwareProfile"),
    ],
)
def test_a_mistake_is_the_error_of_the_command(machine: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(hs.InputError) as error:
        hs.plan(**({"model": "opt-tiny", "hardware": machine, "dtype": "float32"} | JOB | changes))
    assert said in str(error.value)


def test_whole_numbers_of_numpy_are_whole_numbers(machine: Path) -> None:
    lengths = [(np.int64(5), np.int32(4))]
    found = hs.plan(model="opt-tiny", hardware=machine, dtype="float32", workload=lengths)
    assert [(r.prompt_len, r.gen_len) for r in found.record.workload.requests] == [(5, 4)]


@pytest.mark.parametrize(
    ("over", "more", "said"),
    [
        ("link=1", {}, "over: 'link=1' is no mapping"),
        ({}, {}, "over: nothing to sweep"),
        ({"link.h2d": [1]}, {"workers": 0}, "workers: 0 is out of range. Give a whole number from 1 to 1,024"),
        ({"link.h2d": [1]}, {"workers": "2"}, "workers: '2' is no number"),
        ({"link.h2d": [1]}, {"policies": [5]}, "policies: [5] names no policies"),
    ],
)
def test_a_sweep_that_nothing_can_be_is_refused(machine: Path, over: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(hs.InputError) as error:
        hs.sweep(over, **({"model": "opt-tiny", "hardware": machine} | JOB | more))
    assert said in str(error.value)


def test_what_cannot_run_is_refused(plan: hs.Plan) -> None:
    with pytest.raises(hs.InputError, match=r"run: checkpoint and random_weights exclude each other"):
        plan.run(checkpoint="somewhere", random_weights=1)
    with pytest.raises(hs.InputError, match=r"prompts: 1 prompts for a plan of 8 requests"):
        plan.run(prompts=[[1]])
    with pytest.raises(hs.InputError, match=r"prompts\[0\]: 1 tokens, planned are 64"):
        plan.run(prompts=[[1]] * 8)
    with pytest.raises(hs.InputError, match=r"prompts\[0\]: not all are token ids"):
        plan.run(prompts=[[10**6] * 64] * 8)


def test_an_infeasible_job_says_what_is_missing() -> None:
    with pytest.raises(hs.InfeasibleError, match="host_memory") as error:
        hs.plan(model="opt-66b", hardware="rtx4090-desktop", requests=4, prompt_len=512, gen_len=64)
    assert error.value.missing_bytes > 1e9 and error.value.limit == "host_memory"


def test_a_frame_where_pandas_is_present(plan: hs.Plan) -> None:
    pandas = pytest.importorskip("pandas")
    frame = plan.simulate().to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(plan.simulate().rows())


def test_without_pandas_a_frame_says_how_to_get_it(plan: hs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        hs.InputError, match=r"to_frame: a data frame needs pandas. pip install 'hybridserve\[notebooks\]'"
    ):
        plan.to_frame()


def test_without_matplotlib_a_picture_says_how_to_get_it(plan: hs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        hs.InputError, match=r"plot_memory: a picture needs matplotlib. pip install 'hybridserve\[plots\]'"
    ):
        plan.plot_memory()


def test_reports_are_tables_with_every_text_escaped() -> None:
    shown = hs.show("rtx4090-pcie4")
    html = shown._repr_html_()
    assert html.count("<table>") == html.count("</table>") >= 3
    assert "gemm_flops_by_rows" in html and "<caption>" in html
    assert "&lt;" in hs.show("models").__class__("x", {}, "a < b")._repr_html_()
    assert {row["name"] for row in hs.show("models").rows()} >= {"opt-30b"}
    assert json.dumps(shown.result())
    keys = {row["key"] for row in shown.rows()}
    assert "link.latency_s.value" in keys


def test_a_scale_model_keeps_the_ratios(plan: hs.Plan) -> None:
    found = hs.scale_model(plan.hardware, hidden=128, layers=2, vocab=64, scale_requests=4, gen_len=3, slots_share=4.0)
    short = found.plan(3, act_share=0.5)
    assert found.hardware.scale_model_of == "opt-30b on rtx4090-pcie4, 128 requests of 640 tokens"
    assert not short.record.decisions.resident_parts and len(short.workload) == 4
    assert short.act_share == pytest.approx(0.5, abs=0.1)
    assert "ratios, not speeds" in str(found)
    with pytest.raises(hs.InputError, match="runs on a CPU with a paced link, not on"):
        hs.scale_model("rtx4090-pcie4")
    for wrong in ({"prompt_len": -1}, {"requests": 0}, {"scale_requests": 1.5}, {"slots_share": float("nan")}):
        with pytest.raises(hs.InputError, match=next(iter(wrong))):
            hs.scale_model(plan.hardware, **wrong)  # type: ignore[arg-type]

"""The command line as a contract: keys, exit codes, files, and that planning needs no torch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import LENGTHS, cli, tiny_opt, write_prompts, write_small_profile
from runtime_helpers import greedy

from planner import terminal
from planner.model import known_models
from planner.peers.catalogue import PEERS
from planner.policies import POLICIES
from planner.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
TIME_KEYS = {"throughput_tokens_per_s", "total_s", "prefill_s", "decode_s", "decode_step_s"}
PLAN_KEYS = TIME_KEYS | {
    "policy", "bound_total_s", "gap", "solve_s", "act_share", "mini_batches", "resident_layers", "memory", "binding",
    "streams", "why", "made_for",
}  # fmt: skip
COMMANDS = ("plan", "simulate", "explain", "run", "profile", "compare", "show", "demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine, a checkpoint, prompts and a plan for them."""
    d = tmp_path_factory.mktemp("cli")
    write_small_profile(d / "small.yaml")
    tiny_opt().save_pretrained(d / "opt")
    write_prompts(d / "prompts.jsonl", max_new_tokens=8)
    done = cli("plan", *job(d), "-o", d / "plan.yaml")
    assert (done.code, done.err) == (0, f"written: {d / 'plan.yaml'}\n")
    return d


def job(d: Path) -> list[str]:
    return ["--model", "opt-tiny", "--hardware", str(d / "small.yaml"), *LENGTHS.split()]


def assert_plan_keys(result: dict[str, Any]) -> None:
    assert result.keys() >= PLAN_KEYS
    assert sum(batch["requests"] for batch in result["mini_batches"]) == 8
    assert sum(batch["tokens"] for batch in result["mini_batches"]) == 8 * 64
    assert result["memory"].keys() == {"gpu", "host"}
    for record in result["memory"].values():
        assert 0 <= record["planned_bytes"] <= record["capacity_bytes"]
        assert all(line.keys() == {"name", "bytes", "phase"} for line in record["lines"])
    assert result["binding"] in ("link", "compute")
    assert 0 <= result["act_share"] <= 1
    assert result["gap"] == pytest.approx(1 - result["bound_total_s"] / result["total_s"])
    assert result["total_s"] == pytest.approx(result["prefill_s"] + result["decode_s"])
    assert result["decode_step_s"] == pytest.approx(result["decode_s"] / 7 / result["waves"])
    assert result["throughput_tokens_per_s"] == pytest.approx(64 / result["total_s"])


def assert_measured_keys(result: dict[str, Any]) -> None:
    assert_plan_keys(result)
    measured, error = result["measured"], result["error"]
    assert measured.keys() >= TIME_KEYS
    assert error.keys() == TIME_KEYS
    for key in TIME_KEYS:
        assert error[key] == pytest.approx((result[key] - measured[key]) / measured[key])
    assert result["peak_bytes"].keys() == {"gpu", "host"}
    for device, peak in result["peak_bytes"].items():
        assert 0 < peak <= result["memory"][device]["capacity_bytes"]


def test_plan(folder: Path) -> None:
    done = cli("plan", *job(folder), "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert_plan_keys(done.json)
    assert done.json["policy"] == "hybrid"


def test_simulate_gives_what_the_plan_promised(folder: Path) -> None:
    planned, done = cli("plan", *job(folder), "--json"), cli("simulate", folder / "plan.yaml", "--json")
    assert (done.code, done.err) == (0, "")
    assert_plan_keys(done.json)
    assert {k: done.json[k] for k in TIME_KEYS} == pytest.approx({k: planned.json[k] for k in TIME_KEYS})


def test_explain(folder: Path) -> None:
    planned, done = cli("plan", *job(folder), "--json"), cli("explain", folder / "plan.yaml", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    found = done.json
    assert found["total_s"] == pytest.approx(planned.json["total_s"])
    assert found["made_for"] == planned.json["made_for"]
    assert found["phases"].keys() == {"prefill", "decode"}
    for name, phase in found["phases"].items():
        assert phase["phase_s"] == pytest.approx(planned.json[f"{name}_s"])
        exposed = sum(use["exposed_s"] for use in phase["kinds"].values()) + phase["idle_s"]
        assert exposed == pytest.approx(phase["phase_s"], rel=1e-9)
    assert found["without"].keys() == {"link", "compute"}
    assert "What binds" in cli("explain", folder / "plan.yaml").out


def test_run(folder: Path) -> None:
    done = cli("run", folder / "plan.yaml", "--json", "--hardware", folder / "small.yaml")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert_measured_keys(done.json)


def test_compare(folder: Path) -> None:
    done = cli("compare", *job(folder), "--json")
    assert (done.code, done.err) == (0, "")
    shown = {result["policy"]: result for result in done.json["policies"]}
    assert [*shown, *done.json["infeasible"]] == [*POLICIES, *PEERS]
    for name, result in shown.items():
        assert result["executable"] == (name in POLICIES) and result["limited_by"]
        assert "measured" not in result
        if name in POLICIES:
            assert_plan_keys(result)
        else:
            assert result["gap"] is None and result["settings"]
            assert result["throughput_tokens_per_s"] * result["total_s"] == pytest.approx(8 * 8)


def test_another_system_is_only_predicted(folder: Path) -> None:
    done = cli("plan", *job(folder), "--policy", "flexgen", "--json")
    assert (done.code, done.json["policy"], done.json["executable"]) == (0, "flexgen", False)
    assert "A forecast, not a plan to run" in cli("plan", *job(folder), "--policy", "kvpr").out
    for extra, said in (
        (["-o", folder / "no.yaml"], "--output: 'flexgen' is another system"),
        (["--act-share", "0.5"], "--act-share: 'flexgen' is another system"),
        (["--mini-batches", "2"], "--mini-batches: 'flexgen' is another system"),
        (["--waves", "2"], "--waves: 'flexgen' is another system"),
    ):
        refused = cli("plan", *job(folder), "--policy", "flexgen", *extra)
        assert refused.code == 2 and said in refused.err, refused.err
    assert not (folder / "no.yaml").exists()
    refused = cli("compare", *job(folder), "--policies", "hybrid,flexgen", "--execute")
    assert refused.code == 2 and "flexgen: other systems are predicted" in refused.err


def test_what_is_fixed_leaves_other_systems_out(folder: Path) -> None:
    done = cli("compare", *job(folder), "--mini-batches", "2", "--json")
    assert done.code == 0
    assert {*done.json["infeasible"], *(result["policy"] for result in done.json["policies"])} == set(POLICIES)


def test_compare_execute(folder: Path) -> None:
    done = cli("compare", *job(folder), "--policies", " kv-only, hybrid,kv-only", "--execute", "--json")
    assert (done.code, done.err) == (0, "")
    assert [result["policy"] for result in done.json["policies"]] == ["kv-only", "hybrid"]
    for result in done.json["policies"]:
        assert_measured_keys(result)


def test_greedy_tokens_of_a_checkpoint_are_those_of_transformers(folder: Path) -> None:
    plan, out = folder / "from-prompts.yaml", folder / "out.jsonl"
    chosen = ["--model", folder / "opt", "--hardware", folder / "small.yaml", "--workload", folder / "prompts.jsonl"]
    assert cli("plan", *chosen, "-o", plan).code == 0
    done = cli("run", plan, "--checkpoint", folder / "opt", "--input", folder / "prompts.jsonl", "--output", out)
    assert done.code == 0, done.err
    assert done.err == f"written: {out}\n"
    asked = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    prompts = [line["tokens"] for line in asked]
    assert [a["tokens"] for a in answers] == greedy(tiny_opt(), prompts, Workload.uniform(8, 64, 8))
    assert [a["id"] for a in answers] == [line["id"] for line in asked]
    assert all(a.keys() == {"id", "text", "tokens", "finish_reason"} for a in answers)
    assert all((a["text"], a["finish_reason"]) == (None, "length") for a in answers)


@pytest.mark.parametrize(("command", "processes"), [("simulate", ["predicted"]), ("run", ["predicted", "measured"])])
def test_trace(command: str, processes: list[str], folder: Path) -> None:
    path = folder / f"{command}.json"
    assert cli(command, folder / "plan.yaml", "--trace", path).code == 0
    events = json.loads(path.read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    lanes = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert names == processes
    assert lanes == {(pid, s) for pid in range(1, len(names) + 1) for s in ("h2d", "compute", "d2h", "steps")}
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == set(range(1, len(names) + 1))
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = cli(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Example: hybridserve {command}" in done.out


def test_without_a_command_the_help_is_printed() -> None:
    done = cli()
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)


def test_show(folder: Path) -> None:
    assert cli("show", "models", "--json").json == {"models": known_models()}
    assert "rtx4090-pcie4" in cli("show", "hardware", "--json").json["hardware"]
    assert all(name in cli("show", "models").out for name in known_models())
    assert "rtx4090-pcie4" in cli("show", "hardware").out
    for args in (["opt-30b"], ["models", "opt-30b"]):
        assert cli("show", *args, "--json").json["layers"] == 48
        assert "29.97 billion" in cli("show", *args).out
    for args in (["rtx4090-pcie4"], ["hardware", "rtx4090-pcie4"]):
        assert cli("show", *args, "--json").json["id"] == "rtx4090-pcie4"
        assert "h2d_bytes_per_s             24.45 GB/s" in cli("show", *args).out
    assert cli("show", folder / "small.yaml", "--json").json["id"] == "small-cpu"
    assert cli("show", folder / "opt", "--json").json["hidden"] == 64


def test_show_says_what_to_measure(folder: Path) -> None:
    for name in ("rtx4090-pcie4", folder / "small.yaml"):
        found = cli("show", "hardware", name, "--json").json
        assert found["reference_job"].keys() == {"model", "requests", "prompt_len", "gen_len"}
        assert all(d.keys() == {"key", "kind", "low_fraction", "high_fraction"} for d in found["worth_measuring"])
        assert all(e.keys() == {"key", "achieved", "datasheet", "fraction"} for e in found["efficiency"])
        assert "worth measuring" in cli("show", name).out
    assert found["reference_job"]["model"] == "opt-tiny"


@pytest.mark.parametrize("width", [80, 120])
def test_what_people_read_fits_their_terminal(width: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", width)
    for line in (
        f"plan {shlex.join(job(folder))}", f"run {folder}/plan.yaml", f"compare {shlex.join(job(folder))} --execute",
        f"explain {folder}/plan.yaml", "show rtx4090-pcie4", "show hardware", "show models", "show opt-30b",
    ):  # fmt: skip
        done = cli(*shlex.split(line))
        assert done.code == 0, done.err
        assert max(len(row.rstrip()) for row in done.out.splitlines()) <= width, line
        assert "\u2026" not in done.out, "a column was cut"


def test_written_files_can_be_read_by_others(folder: Path) -> None:
    mask = os.umask(0o022)
    try:
        assert cli("plan", *job(folder), "-o", folder / "new" / "shared.yaml").code == 0
    finally:
        os.umask(mask)
    assert (folder / "new" / "shared.yaml").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (folder / "new").iterdir()] == ["shared.yaml"]


def test_a_device_is_written_to_not_replaced(folder: Path) -> None:
    assert cli("plan", *job(folder), "-o", os.devnull).code == 0
    assert Path(os.devnull).is_char_device()


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing heavy can be imported."""
    fakes = tmp_path_factory.mktemp("fakes")
    for name in ("torch", "transformers", "safetensors", "matplotlib"):
        (fakes / f"{name}.py").write_text(f"raise ImportError('No module named {name}')\n")
    return os.environ | {"PYTHONPATH": str(fakes)}


@pytest.mark.parametrize(
    ("line", "code", "fragment"),
    [
        ("plan {job}", 0, ""),
        ("plan --model opt-tiny --hardware {d}/small.yaml --workload {d}/prompts.jsonl", 0, ""),
        ("simulate {d}/plan.yaml", 0, ""),
        ("explain {d}/plan.yaml", 0, ""),
        ("show rtx4090-pcie4", 0, ""),
        ("compare {job}", 0, ""),
        ("show opt-30b", 0, ""),
        ("run {d}/plan.yaml", 2, "running needs torch"),
        ("compare {job} --execute", 2, "pip install 'hybridserve[runtime]'"),
        ("profile -o {d}/x.yaml", 2, "pip install 'hybridserve[runtime]'"),
        ("demo --output {d}/demo", 2, "pip install 'hybridserve[runtime]'"),
    ],
)
def test_planning_needs_no_torch(
    line: str, code: int, fragment: str, folder: Path, without_torch: dict[str, str]
) -> None:
    text = line.replace("{job}", shlex.join(job(folder))).replace("{d}", str(folder))
    command = [sys.executable, str(ROOT / "hybridserve.py"), *shlex.split(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=without_torch)
    assert done.returncode == code, done.stderr
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)


def test_a_broken_torch_is_as_good_as_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')\n")
    command = [sys.executable, str(ROOT / "hybridserve.py"), "run", str(folder / "plan.yaml")]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "libcudart.so" in done.stderr
    assert "pip install" in done.stderr


def test_random_weights_are_the_same_for_the_same_seed(folder: Path) -> None:
    outs = [folder / f"seed-{i}.jsonl" for i in range(3)]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        prompts = ["--input", folder / "prompts.jsonl", "--output", out]
        assert cli("run", folder / "plan.yaml", "--random-weights", seed, *prompts).code == 0
    assert outs[0].read_text() == outs[1].read_text() != outs[2].read_text()
    assert torch.is_inference_mode_enabled() is False

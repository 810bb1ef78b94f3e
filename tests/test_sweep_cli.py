"""`hybridserve sweep` as people run it: what it prints and writes, and what it says to mistakes."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cli_helpers import LENGTHS, cli, write_small_profile

from planner.sweep import FIGURES, Row
from planner.sweep_axes import read_axes
from runtime.plots.sweeps import is_geometric, sweep_figure

JOB = f"sweep --model opt-tiny --hardware {{d}}/small.yaml {LENGTHS}"
BARE = "sweep --model opt-tiny --hardware {d}/small.yaml"
ALL = "--policies hybrid,kv-only"
MACHINE = "rtx4090-pcie4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    d = tmp_path_factory.mktemp("sweep cli")
    write_small_profile(d / "small.yaml")
    (d / "jobs.jsonl").write_text('{"prompt_len": 32, "gen_len": 4}\n' * 3)
    (d / "half.jsonl").write_text('{"prompt_len": 32\n')
    (d / "folder").mkdir()
    return d


def words(line: str, folder: Path) -> list[str]:
    return [part.replace("{d}", str(folder)) for part in shlex.split(line)]


BAD = [
    (JOB, "missing option '--set'"),
    (f"{JOB} --set link.h2d", "--set: 'link.h2d' is no key with values. Write KEY=VALUES"),
    (f"{JOB} --set =16", "--set: '=16' is no key with values"),
    (f"{JOB} --set ''", "--set: '' is no key with values"),
    (f"{JOB} --set link.h2d=", "--set link.h2d: a value is missing. Write values as"),
    (f"{JOB} --set link.h2d=16,,32", "--set link.h2d: a value is missing"),
    (f"{JOB} --set link.h2e=16", "--set: unknown key 'link.h2e'. Did you mean 'link.h2d'"),
    (f"{JOB} --set model.layer=16", "unknown key 'model.layer'. Did you mean 'model.layers'"),
    (f"{JOB} --set colour=red", "unknown key 'colour'. Known: act_share, compute"),
    (f"{JOB} --set gpu.datasheet.flops.float16=1e14", "unknown key 'gpu.datasheet.flops.float16'"),
    (f"{JOB} --set link.h2d=fast", "--set link.h2d: 'fast' is no number"),
    (f"{JOB} --set link.h2d=nan", "--set link.h2d: 'nan' is no number"),
    (f"{JOB} --set link.h2d=1_6", "--set link.h2d: '1_6' is no number"),
    (f"{JOB} --set link.h2d=inf", "--set link.h2d: 'inf' is no number"),
    (f"{JOB} --set link.h2d=8..64", "the range 8..64 has no step. Write values as 8,16,32, a range with its step"),
    (f"{JOB} --set link.h2d=64..8:8", "a range runs up, not from 64 to 8. Swap its ends"),
    (f"{JOB} --set link.h2d=8..64:0", "a step is above 0, not 0"),
    (f"{JOB} --set link.h2d=8..64*1", "a factor is above 1, not 1"),
    (f"{JOB} --set link.h2d=0..64*2", "a range with a factor begins above 0, not at 0"),
    (f"{JOB} --set link.h2d=1..1e9:1", "more than 1000 values"),
    (f"{JOB} --set link.h2d=16,16.0", "--set link.h2d: 16 is given twice. Give every value once"),
    (f"{JOB} --set link.h2d=x2,16", "factors and values are mixed"),
    (f"{JOB} --set compute=2", "this has no single value, it can only be scaled. Write x2"),
    (f"{JOB} --set compute=x0,x1", "--set compute: x0 leaves nothing. Give factors above 0"),
    (f"{JOB} --set gpu.achieved.gemm_flops_by_rows.float32=1e12", "it can only be scaled"),
    (f"{BARE} --prompt-len 64 --gen-len 8 --set requests=x2", "there is nothing to multiply here"),
    (f"{BARE} --prompt-len 64 --gen-len 8 --set requests=8.5", "8.5 is not a whole number"),
    (f"{BARE} --prompt-len 64 --gen-len 8 --set requests=0", "0 is out of range. Give values from 1 to 1e+06"),
    (f"{BARE} --prompt-len 64 --set requests=8", "no workload: --gen-len missing. Give or sweep all three"),
    (f"{JOB} --set requests=8,16", "--set requests: --requests says it already. Leave out one of them"),
    (f"{BARE} --workload {{d}}/jobs.jsonl --set gen_len=8", "--set gen_len: --workload says it already"),
    (f"{BARE} --workload {{d}}/half.jsonl --set link.h2d=8", "half.jsonl: line 1: not valid JSON"),
    (f"{JOB} --set model=opt-tiny", "--set model: --model says it already"),
    (f"{JOB} --gpu-memory-gb 0.0015 --set gpu.memory=1", "--set gpu.memory: --gpu-memory-gb says it already"),
    (f"{JOB} --act-share 0.5 --set act_share=0,1", "--set act_share: --act-share says it already"),
    (f"sweep --model opt-tiny {LENGTHS} --set link.h2d=16", "--hardware: no hardware given. Give --hardware, or"),
    (f"sweep --hardware {{d}}/small.yaml {LENGTHS} --set link.h2d=16", "--model: no model given. Give --model, or"),
    (f"sweep --hardware {{d}}/small.yaml {LENGTHS} --set model=opt-tiny,opt-tony", "unknown model 'opt-tony'. Did"),
    (f"sweep --model opt-tiny {LENGTHS} --set hardware=rtx9090,t4", "unknown hardware 'rtx9090'"),
    (f"{JOB} --set dtype=float8", "--set dtype=float8: dtype: unknown dtype 'float8'. Did you mean"),
    (f"{JOB} --set link.h2d=8 --set link.h2d=16", "'link.h2d' is set twice. Give all values in one --set"),
    (f"{JOB} --set link=8 --set link.h2d=16", "--set link.h2d: it sets what 'link' sets. Keep one of the two"),
    (f"{JOB} --set link.h2d_bytes_per_s=1e9 --set link.h2d=16", "it sets what 'link.h2d_bytes_per_s' sets"),
    (f"{JOB} --set compute=x2 --set gpu.achieved.op_overhead_s=0", "it sets what 'compute' sets"),
    (f"{JOB} --set link.latency_s=-1", "--set link.latency_s=-1: small-cpu: link.latency_s.value"),
    (f"{JOB} --set link.h2d=0", "--set link.h2d: 0 is out of range. Give values from 0.001 to 10000"),
    (f"{JOB} --set gpu.memory=0.0015,-1", "--set gpu.memory: -1 is out of range"),
    (f"{JOB} --set gpu.memory.context_reserve_bytes=1,1e9", "context_reserve_bytes=1000000000: small-cpu: gpu.memory"),
    (f"{JOB} --set model.heads=3", "--set model.heads=3"),
    (f"{JOB} --set mini_batches=4,16", "--set mini_batches=16: --mini-batches: 16 mini-batches for 8 requests"),
    (f"{JOB} {ALL} --set act_share=0.5", "policy 'kv-only' has an ACT share of 0, not of 0.5"),
    (f"{BARE} --requests 8 --gen-len 8 --set prompt_len=64,6400", "--set prompt_len=6400: workload: request '0' needs"),
    (f"{JOB} --set link.h2d=1..200:1 --set link.d2h=1..200:1", "120,000 plans are more than 10,000. Give fewer"),
    (f"{JOB} --set link.h2d=8 --policies kvonly", "unknown policy 'kvonly'. Did you mean"),
    (f"{JOB} --set link.h2d=8 --workers 0", "'--workers'"),
    (f"{JOB} --set link.h2d=8 -o {{d}}/folder", "cannot write: this is a folder"),
    (f"{JOB} --set link.h2d=8 -o {{d}}/small.yaml", "would overwrite what is read"),
    (f"{JOB} --set link.h2d=8 -o {{d}}/a.png --plot {{d}}/a.png", "would overwrite what --output writes"),
    (f"{JOB} --set link.h2d=8 --plot {{d}}/a.jpg", "--plot: unknown kind of picture '.jpg'"),
    (f"{JOB} --set link.h2d=8 --plot {{d}}/folder", "--plot: unknown kind of picture ''"),
    (
        f"{JOB} --set link.h2d=8 --set link.d2h=8 --set host.memory=64 --plot {{d}}/a.png",
        "--plot: a picture shows one or two keys, not 3. Leave it out, or sweep fewer keys at once",
    ),
]


@pytest.mark.parametrize(("line", "fragment"), BAD)
def test_bad_input(line: str, fragment: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = cli(*words(line, folder))
    assert fragment in done.err
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before, "a file was left behind"


def test_table_csv_json_and_picture_of_one_sweep(folder: Path, tmp_path: Path) -> None:
    line = f"{JOB} {ALL} --set gpu.memory=0.00002,0.0016,0.004 --workers 2"
    done = cli(*words(line, folder), "-o", tmp_path / "rows.csv", "--plot", tmp_path / "rows.png")
    assert done.code == 0, done.err
    assert done.err == f"written: {tmp_path / 'rows.csv'}\nwritten: {tmp_path / 'rows.png'}\n"
    assert max(map(len, done.out.splitlines())) <= 80
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(encoding="utf-8")))
    assert [(float(row["set.gpu.memory"]), row["policy"]) for row in rows] == [
        (size, policy) for size in (0.00002, 0.0016, 0.004) for policy in ("hybrid", "kv-only")
    ]
    assert [row["binds"] == "no plan" for row in rows] == [True, True, False, False, False, False]
    assert "Where the binding resource changes" in done.out
    assert "no plan to " in done.out
    assert "Not feasible" in done.out
    again = cli(*words(f"{line.replace('--workers 2', '--workers 1')} --json", folder))
    assert again.code == 0, again.err
    for row, same in zip(rows, again.json["rows"], strict=True):
        assert same["infeasible"] == (row["infeasible"] or None)
        for key in FIGURES:
            found = same[key]
            assert row[key] == ("" if found is None else found if isinstance(found, str) else repr(found))
    assert again.json["axes"] == [{"key": "gpu.memory", "unit": "GB", "values": [0.00002, 0.0016, 0.004]}]
    assert {flip["was"] for flip in again.json["flips"]} >= {"no plan"}
    assert _ink(tmp_path / "rows.png") > 0.005


def test_rows_are_what_plan_predicts(folder: Path) -> None:
    """A sweep over one's own value is `plan`."""
    plan = cli(*words(JOB.replace("sweep", "plan"), folder), "--policy", "kv-only", "--json").json
    line = f"{JOB} --policies kv-only --set link=x1 --json"
    (row,) = cli(*words(line, folder)).json["rows"]
    assert row["set"] == {"link": "x1"}
    for key in ("total_s", "throughput_tokens_per_s", "gap", "bound_total_s", "act_share", "binding"):
        assert row[key] == plan[key], key
    assert row["mini_batches"] == len(plan["mini_batches"])
    assert row["gpu_planned_bytes"] == plan["memory"]["gpu"]["planned_bytes"]
    assert row["link_busy_fraction"] == plan["streams"]["h2d"]["busy_fraction"]


def test_a_workload_file_and_two_keys(folder: Path, tmp_path: Path) -> None:
    line = f"{BARE} --workload {{d}}/jobs.jsonl --policies kv-only,act-only --workers 1"
    line += " --set link.h2d=1,2,4 --set dtype=float32"
    done = cli(*words(line, folder), "--plot", tmp_path / "two.svg")
    assert done.code == 0, done.err
    assert "6 plans" in done.out
    assert (tmp_path / "two.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_exit_code_where_no_point_is_feasible(folder: Path, tmp_path: Path) -> None:
    line = f"{JOB} {ALL} --set gpu.memory=0.00002,0.00003 --workers 1"
    done = cli(*words(line, folder), "-o", tmp_path / "rows.csv")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: no policy is feasible\nhybrid at gpu.memory = 2e-05: infeasible (gpu_memory)")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_picture_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    done = cli(*words(f"{JOB} --set link.h2d=8", folder), "--plot", tmp_path / "a.png")
    assert (done.code, done.out) == (2, "")
    assert "--plot: a picture needs matplotlib. pip install 'hybridserve[plots]'" in done.err


@pytest.mark.parametrize(
    ("values", "found"),
    [((8, 16, 32), True), ((1, 10, 100), True), ((8, 16), False), ((8, 16, 24), False), ((0, 1, 2), False)],
)
def test_log_axis_where_values_are_geometric(values: tuple[float, ...], found: bool) -> None:
    assert is_geometric(values) is found


def test_a_picture_of_two_keys_differs_in_grey(tmp_path: Path) -> None:
    """Lines of one panel have marks and dashes of their own, so that no colour is needed."""
    axes = read_axes(["link.h2d=8,16,32", "model=opt-tiny,opt-125m,opt-1.3b"], MACHINE)
    rows = [
        Row({"link.h2d": rate, "model": model}, policy, _figures(rate * i) if model != "opt-1.3b" or rate > 8 else None)
        for rate in (8.0, 16.0, 32.0)
        for i, model in enumerate(("opt-tiny", "opt-125m", "opt-1.3b"), start=1)
        for policy in ("hybrid", "kv-only")
    ]
    sweep_figure(axes, rows, tmp_path / "two.png")
    assert _ink(tmp_path / "two.png") > 0.005


def _figures(rate: float) -> dict[str, float]:
    return dict.fromkeys(FIGURES, 1.0) | {"throughput_tokens_per_s": rate}


def _ink(path: Path) -> float:
    """Share of the pixels that are darker than light grey."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return float(np.mean(pixels.mean(axis=-1) < 0.7))

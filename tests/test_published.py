"""Published figures: the data is whole, predictions are what the record says and near enough, models behave, mistakes
are named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import published
from benchmarks.figures import FIGURES, Row, load_rows
from benchmarks.peers import zero_inference_bound
from benchmarks.predictions import MODELS, predict, speedup
from benchmarks.published import load, main, make_record, markdown_table
from planner.costs import CostModel
from planner.errors import InputError
from planner.hardware import load_hardware
from planner.model import load_model
from planner.peers.flexgen import FlexGen, Setting, placed, speeds
from planner.peers.job import Job, Phases, compute
from planner.peers.kvpr import kvpr_saving
from planner.peers.streaming import accelerate, zero_inference

ROOT = Path(__file__).resolve().parents[1]
ROWS = {row.id: row for row in load_rows()}
PLANNED = "hybridserve-4090"
"""The one row that makes plans: seconds each."""
JOB = Job(8, 512, 32)


def costs(hardware: str = "t4", model: str = "opt-30b", **changes: float) -> CostModel:
    profile = load_hardware(hardware)
    return CostModel(profile.with_values(**changes) if changes else profile, load_model(model))


# ---- the data ------------------------------------------------------------------------------------


def test_every_published_figure_is_there() -> None:
    assert {row.id: row.published.value for row in ROWS.values()} == {
        "flexgen-t4-30b-512": 7.32, "flexgen-t4-30b-nocpu": 4.03, "flexgen-t4-30b-nooverlap": 5.86,
        "accelerate-t4-30b": 0.62, "deepspeed-t4-30b": 0.60, "zero-a6000-30b": 12.32, "kvpr-a100-6.7b": 0.358,
        "hybridserve-4090": 2.19,
    }  # fmt: skip
    assert {row.system for row in ROWS.values()} == set(MODELS)


def test_every_row_has_a_source_and_a_target_or_a_reason() -> None:
    for row in ROWS.values():
        assert len(row.published.source) > 20 and len(row.setting) > 20
        assert (row.target is None) == (row.caveat is not None)
        assert row.hardware in ("t4", "a6000", "a100-40gb", "rtx4090-pcie4")


def test_no_prediction_rests_on_an_assumed_rate() -> None:
    for row in load()["rows"]:
        assert row["rates"], row["id"]
        for rate in row["rates"]:
            assert rate["kind"] != "assumed" and rate["source"], (row["id"], rate["key"])


# ---- what the project promises -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accelerate-t4-30b", "deepspeed-t4-30b"])
def test_rows_with_a_stated_policy_are_within_a_quarter(name: str) -> None:
    found = predict(ROWS[name])
    assert found.kind == "point"
    assert 1 / 1.25 <= found.high / ROWS[name].published.value <= 1.25


def test_the_saving_of_partial_recomputation_is_within_five_points() -> None:
    found = predict(ROWS["kvpr-a100-6.7b"])
    assert found.kind == "point"
    assert abs(found.high - 0.358) <= 0.05


def test_the_row_without_a_policy_lies_in_the_range_over_policies() -> None:
    found = predict(ROWS["flexgen-t4-30b-nocpu"])
    assert found.kind == "range" and found.low is not None
    assert found.low <= 4.03 <= found.high <= 1.5 * found.low


@pytest.mark.parametrize("name", ["flexgen-t4-30b-512", "flexgen-t4-30b-nooverlap", "zero-a6000-30b"])
def test_cpu_attention_is_bounded_from_above(name: str) -> None:
    found = predict(ROWS[name])
    assert found.kind == "at most" and found.low is None
    assert ROWS[name].published.value <= found.high


def test_every_row_of_the_record_holds() -> None:
    assert [row["id"] for row in load()["rows"]] == list(ROWS)
    assert all(row["holds"] for row in load()["rows"])


# ---- the record ----------------------------------------------------------------------------------


def test_the_record_is_what_the_code_computes() -> None:
    kept = [row for row in load()["rows"] if row["id"] != PLANNED]
    fresh = make_record([row for row in ROWS.values() if row.id != PLANNED])
    assert json.loads(json.dumps(fresh))["rows"] == kept, "run: python -m benchmarks.published --write"


def test_the_planned_row_is_what_the_code_computes_for_one_model() -> None:
    parts = next(row["parts"] for row in load()["rows"] if row["id"] == PLANNED)
    for key, value in speedup(ROWS[PLANNED], "opt-6.7b").items():
        assert value == pytest.approx(parts[f"opt-6.7b_{key}"], rel=1e-3), "run: python -m benchmarks.published --write"


def test_the_planned_row_follows_from_its_parts() -> None:
    row = next(row for row in load()["rows"] if row["id"] == PLANNED)
    for end, key in (("low", "flexgen_pinned_tokens_per_s"), ("high", "flexgen_tokens_per_s")):
        ratios = [row["parts"][f"{m}_hybrid_tokens_per_s"] / row["parts"][f"{m}_{key}"] for m in row["models"]]
        assert row["prediction"][end] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)


def test_markdown_names_every_row_once() -> None:
    text = markdown_table(load())
    table, _, notes = text.partition("\n\n")
    for row in load()["rows"]:
        assert table.count(f"`{row['id']}`") == 1
        assert (f"- `{row['id']}`:" in notes) == (row["caveat"] is not None)
    assert len({line.count("|") for line in table.splitlines()}) == 1


# ---- the models ----------------------------------------------------------------------------------

PEERS: list[tuple[str, Callable[[CostModel, Job], Phases]]] = [
    ("pageable_h2d", accelerate),
    ("h2d", zero_inference),
    ("h2d", zero_inference_bound),
    ("h2d", lambda c, job: FlexGen(c, Setting(8, 4, 0.2)).phases(job)),
    ("pageable_h2d", lambda c, job: FlexGen(c, Setting(8, 4, 0.2)).phases(job)),
]


@pytest.mark.parametrize(("rate", "model"), PEERS)
def test_a_faster_link_is_never_slower(rate: str, model: Callable[[CostModel, Job], Phases]) -> None:
    pinned = {f"link.{way}_bytes_per_s": 5e10 for way in ("h2d", "d2h") if rate.startswith("pageable")}
    speeds_found = [
        model(costs(**pinned, **{f"link.{rate}_bytes_per_s": value}), JOB).tokens_per_s(JOB)
        for value in (7e9, 1e10, 1.2e10, 5e10)
    ]
    assert speeds_found == sorted(speeds_found)
    assert speeds_found[0] < speeds_found[-1]


def test_serial_systems_take_the_sum() -> None:
    found, gpu, model = accelerate(costs(), JOB), compute(costs(), JOB), load_model("opt-30b")
    copies = model.layers * model.layer_bytes / 4.629e9
    assert found.decode_step_s == pytest.approx(copies + gpu.decode_step_s, rel=1e-3)
    assert found.prefill_s - found.decode_step_s == pytest.approx(gpu.prefill_s - gpu.decode_step_s)


@pytest.mark.parametrize("setting", [Setting(8, 1), Setting(16, 2, 0.2), Setting(48, 3, 0.2), Setting(8, 4, 1.0, 0.5)])
def test_serial_is_never_faster_than_overlapped(setting: Setting) -> None:
    serial = replace(setting, overlap=False)
    assert FlexGen(costs(), serial).tokens_per_s(JOB) <= FlexGen(costs(), setting).tokens_per_s(JOB)


def test_a_relay_and_a_slow_host_cost_something() -> None:
    pinned = FlexGen(costs(), Setting(48, 3, 0.2, relay=False)).tokens_per_s(JOB)
    assert FlexGen(costs(), Setting(48, 3, 0.2)).tokens_per_s(JOB) < pinned
    on_cpu = Setting(48, 3, 0.2, cpu_attention=True)
    assert FlexGen(costs(), on_cpu, 6e10).tokens_per_s(JOB) < FlexGen(costs(), on_cpu, 1.28e11).tokens_per_s(JOB)
    with pytest.raises(InputError, match="memory bandwidth"):
        FlexGen(costs(), on_cpu)


def test_a_step_of_flexgen_by_hand() -> None:
    """One batch whose weights all stream: every step is as long as the longer of link and compute."""
    c, model = costs(), load_model("opt-30b")
    decode = FlexGen(c, Setting(4, 1, relay=False)).phases(JOB).decode_step_s
    kv = 4 * JOB.mean_cached * model.kv_bytes_per_token_layer
    streamed = model.layers * (model.layer_bytes + kv) + 2 * model.vocab * model.hidden * 2
    assert decode == pytest.approx(streamed / 1.23e10, rel=0.01)  # on a T4 the link is longer in each of them


def test_whole_tensors_are_placed_by_their_middle() -> None:
    assert [placed(share, 4) for share in (0.0, 0.1, 0.2, 0.4, 1.0)] == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert [placed(share, 2) for share in (0.0, 0.2, 0.25, 1.0)] == [0.0, 0.0, 0.5, 1.0]


def test_flexgen_finds_no_setting_where_none_fits() -> None:
    assert max(speeds(costs(), Job(16, 512, 32)).values()) > 0
    with pytest.raises(InputError, match=r"t4: no FlexGen setting fits opt-30b\. Lower the batch"):
        speeds(costs(), Job(4096, 512, 32))


def test_partial_recomputation_follows_its_closed_form() -> None:
    """facts of the method: MHA in 16 bits saves 1 / (2 (1 + rho)), rho = d B / F, where the forward pass is hidden."""
    c, job = costs("a100-40gb", "opt-6.7b", **{"gpu.achieved.op_overhead_s": 0, "link.latency_s": 0}), Job(64, 1024, 32)
    rho = 4096 * 2.55e10 / 2.4763e14
    assert kvpr_saving(c, job) == pytest.approx(1 / (2 * (1 + rho)), abs=0.002)
    fast = costs("a100-40gb", "opt-6.7b", **{"link.h2d_bytes_per_s": 1e15, "link.d2h_bytes_per_s": 1e15})
    assert kvpr_saving(fast, job) == 0


# ---- mistakes and the command --------------------------------------------------------------------

BAD: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("no source", lambda row: row["published"].update(source=""), "published.source"),
    ("text", lambda row: row["published"].update(value="4e0"), "write 4.0e+0"),
    ("unit", lambda row: row["published"].update(unit="tok/s"), "'tokens/s'"),
    ("system", lambda row: row.update(system="petals"), "system"),
    ("unknown key", lambda row: row.update(batchsize=8), "unknown key"),
    ("missing", lambda row: row.pop("gen_len"), "gen_len: this key is missing"),
    ("batch", lambda row: row.update(batch=143), "gpu_batch x batches is not batch (143)"),
    ("no reason", lambda row: row.pop("caveat"), "says why, in caveat"),
    ("no host", lambda row: row.pop("host_memory_bytes_per_s"), "needs policy and host_memory_bytes_per_s"),
    ("target", lambda row: row.update(target={}), "either within_factor or within_points"),
    ("no profile", lambda row: row.update(hardware="t5"), "unknown hardware 't5'"),
    ("no model", lambda row: row.update(models=["opt-31b"]), "opt-31b"),
]


@pytest.mark.parametrize(("mutate", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_one_mistake_is_named(tmp_path: Path, mutate: Callable[[dict[str, Any]], Any], says: str) -> None:
    data = yaml.safe_load(FIGURES.read_text())
    mutate(data["rows"][0])
    path = tmp_path / "figures.yaml"
    path.write_text(yaml.safe_dump({**data, "rows": data["rows"][:1]}))
    with pytest.raises(InputError) as caught:
        make_record(load_rows(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_is_used_once(tmp_path: Path) -> None:
    data = yaml.safe_load(FIGURES.read_text())
    path = tmp_path / "figures.yaml"
    path.write_text(yaml.safe_dump({**data, "rows": [data["rows"][0]] * 2}))
    with pytest.raises(InputError, match="same id: flexgen-t4-30b-512"):
        load_rows(path)


def test_the_command_prints_one_object_or_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load(FIGURES.read_text())
    path = tmp_path / "figures.yaml"
    path.write_text(yaml.safe_dump({**data, "rows": [row for row in data["rows"] if row["id"] != PLANNED]}))
    assert main(["--json", "--data", str(path)]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["rows"]] == [x for x in ROWS if x != PLANNED]
    assert main(["--data", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "accelerate-t4-30b" in printed and max(map(len, printed.splitlines())) <= 80
    assert main(["--data", str(tmp_path / "none.yaml")]) == 2
    assert "no such published figures file" in capsys.readouterr().err.replace("\n", " ")


def test_only_what_is_asked_for_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    def keep(name: str, _: object) -> Path:
        kept.append(name)
        return tmp_path / name

    def one_row(_: Path) -> list[Row]:
        return [ROWS["accelerate-t4-30b"]]

    monkeypatch.setattr(published, "write", keep)
    monkeypatch.setattr(published, "load_rows", one_row)
    assert main([]) == 0 and kept == []
    assert main(["--write"]) == 0 and kept == ["published.json"]


def test_it_loads_no_heavy_package() -> None:
    code = (
        "import benchmarks.published, sys; print([n for n in ('torch', 'transformers', 'runtime') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

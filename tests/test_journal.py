"""Nothing is lost: journals, runs that were killed, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import cli, write_small_profile
from family_helpers import build, save

from planner.errors import InputError, RunError
from runtime.journal import SUFFIX, Journal

ROOT = Path(__file__).resolve().parents[1]
COUNT, GEN = 6, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, prompts that end at different steps and sample in different ways, a plan for them."""
    d = tmp_path_factory.mktemp("journal")
    save(build("llama"), d / "model")
    write_small_profile(d / "small.yaml")
    lines: list[dict[str, Any]] = [
        {
            "id": f"r{i}", "tokens": [(7 * i + 3 * j) % 131 for j in range(5 + 9 * i)], "max_new_tokens": GEN - 6 * i,
            "temperature": 0.8 if i % 2 else 0.0, "seed": i,
        }
        for i in range(COUNT)
    ]  # fmt: skip
    (d / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    complete(d, d / "endless.jsonl")
    # An end token that ends some of them early.
    made = [line["tokens"] for line in lines_of(d / "endless.jsonl")]
    config = json.loads((d / "model" / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = next(t for t in made[0][8:] if t not in made[1] or t not in made[2])
    (d / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    complete(d, d / "whole.jsonl")
    return d


def complete(d: Path, out: Path) -> None:
    """Plan, and run without a disturbance."""
    line = ["plan", "--model", d / "model", "--hardware", d / "small.yaml", "--workload", d / "prompts.jsonl"]
    for words in ([*line, "-o", d / "plan.yaml"], command(d, out)):
        done = cli(*words)
        assert done.code == 0, done.err


def command(d: Path, out: Path) -> list[Any]:
    return ["run", d / "plan.yaml", "--checkpoint", d / "model", "--input", d / "prompts.jsonl", "--output", out]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- the journal itself ----------------------------------------------------------------------------


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out.jsonl", {"job": 1})
    assert not first.path.exists()
    first.write({"a": [1, 2], "b": [3]}, ended=False)
    first.write({"a": [1, 2, 4]}, ended=True)
    first.write({"a": [9]}, ended=True)  # it has ended: nothing more is taken
    again = Journal(tmp_path / "out.jsonl", {"job": 1})
    assert again.tokens == first.tokens == {"a": [1, 2, 4], "b": [3]}
    assert again.ended == first.ended == {"a"}
    again.write({"b": [3, 5]}, ended=True)
    assert Journal(tmp_path / "out.jsonl", {"job": 1}).ended == {"a", "b"}
    again.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_counts_for_nothing(cut: int, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 1)
    journal.write({"a": [1, 2, 3]}, ended=True)
    before = journal.path.read_bytes()
    journal.write({"b": [4, 5, 6, 7, 8, 9, 10, 11, 12]}, ended=False)
    journal.path.write_bytes(journal.path.read_bytes()[: len(before) + cut])
    again = Journal(tmp_path / "out.jsonl", 1)
    assert again.ended == {"a"} and again.tokens.keys() <= {"a", "b"}
    again.write({"b": [4, 5]}, ended=True)
    assert Journal(tmp_path / "out.jsonl", 1).tokens == {"a": [1, 2, 3], "b": [4, 5]}


@pytest.mark.parametrize("text", ["", '{"version": 1, "job"', "\n"])
def test_a_journal_cut_in_its_first_line_begins_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.jsonl{SUFFIX}"
    path.write_text(text, encoding="utf-8")
    if text == "\n":
        with pytest.raises(InputError, match="not a journal"):
            Journal(tmp_path / "out.jsonl", 1)
        return
    journal = Journal(tmp_path / "out.jsonl", 1)
    journal.write({"a": [1]}, ended=True)
    assert Journal(tmp_path / "out.jsonl", 1).ended == {"a"}


@pytest.mark.parametrize("text", ["hello\n", '{"version": 2, "job": "x"}\n', "[1]\n"])
def test_what_is_no_journal_of_this_job_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / f"out.jsonl{SUFFIX}").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"remove .*out\.jsonl\.journal, or choose another --output"):
        Journal(tmp_path / "out.jsonl", 1)
    Journal(tmp_path / "other.jsonl", 1).write({"a": [1]}, ended=True)
    with pytest.raises(InputError, match="not the journal of this plan"):
        Journal(tmp_path / "other.jsonl", 2)


def test_a_full_disk_is_one_message_and_keeps_what_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", 1)
    journal.write({"a": [1]}, ended=True)
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(RunError, match="Make room, then give the same command"):
        journal.write({"b": [2]}, ended=True)


def test_what_the_disk_did_not_take_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "out.jsonl", 1)
    journal.write({"a": [1]}, ended=True)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RunError, match=r"No space left on device\. Make room"):
            journal.write({"b": [2]}, ended=True)
    assert journal.ended == {"a"}
    journal.write({"b": [3]}, ended=True)
    assert Journal(tmp_path / "out.jsonl", 1).tokens == {"a": [1], "b": [3]}


# ---- runs --------------------------------------------------------------------------------------------


def test_requests_end_at_end_tokens_and_in_their_own_way(folder: Path) -> None:
    whole, endless = lines_of(folder / "whole.jsonl"), lines_of(folder / "endless.jsonl")
    end = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert [line["id"] for line in whole] == [f"r{i}" for i in range(COUNT)]
    assert {line["finish_reason"] for line in whole} == {"length", "stop"}
    assert {line["finish_reason"] for line in endless} == {"length"}
    for i, line in enumerate(whole):
        ended = line["finish_reason"] == "stop"
        assert ended == (line["tokens"][-1] == end)
        assert end not in line["tokens"][:-1]
        assert line["tokens"] == endless[i]["tokens"][: len(line["tokens"])]
        assert len(line["tokens"]) == GEN - 6 * i or ended
    assert not (folder / f"whole.jsonl{SUFFIX}").exists()


def test_a_journal_at_any_point_leads_to_the_same_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the run had been killed there: some requests finished, some begun, some not."""
    from runtime import engine  # noqa: PLC0415

    monkeypatch.setattr(engine, "LOOKAHEAD", 8)
    whole, draw = lines_of(folder / "whole.jsonl"), random.Random(5)
    out = tmp_path / "out.jsonl"
    kept: dict[str, Any] = {}

    from runtime import execution  # noqa: PLC0415

    real = execution.execute

    def spied(*args: Any, **more: Any) -> Any:
        keep = more["keep"]

        def both(made: Any, ended: bool) -> None:
            keep(made, ended)
            kept.setdefault("text", [])
            kept["text"].append((tmp_path / f"out.jsonl{SUFFIX}").read_text(encoding="utf-8"))

        return real(*args, **more | {"keep": both, "keep_every_s": 0.0})

    with monkeypatch.context() as patched:
        patched.setattr(execution, "execute", spied)
        assert cli(*command(folder, out)).code == 0
    assert lines_of(out) == whole
    for text in draw.sample(kept["text"], 4):
        (tmp_path / f"again.jsonl{SUFFIX}").write_text(text, encoding="utf-8")
        done = cli(*command(folder, tmp_path / "again.jsonl"))
        assert done.code == 0 and "going on: " in done.err, done.err
        assert lines_of(tmp_path / "again.jsonl") == whole
        (tmp_path / "again.jsonl").unlink()


def test_a_run_of_nothing_left_only_writes(folder: Path, tmp_path: Path) -> None:
    whole, out = lines_of(folder / "whole.jsonl"), tmp_path / "out.jsonl"
    cli(*command(folder, out))
    assert lines_of(out) == whole
    done = cli(*command(folder, tmp_path / "b.jsonl"), "--json")
    assert done.code == 0 and done.json["policy"]


def test_the_journal_of_other_prompts_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    Journal(out, "other").write({"r0": [1]}, ended=True)
    done = cli(*command(folder, out))
    assert (done.code, done.out) == (2, "")
    assert "not the journal of this plan and these prompts" in done.err
    assert not out.exists()


@pytest.mark.parametrize("seed", range(int(os.environ.get("CRASHES", "1"))))
def test_killed_at_any_moment_and_started_again(folder: Path, tmp_path: Path, seed: int) -> None:
    """SIGKILL, several times: every id once, with the tokens of a run that was left alone."""
    out, draw = tmp_path / "out.jsonl", random.Random(seed)
    line = [sys.executable, str(ROOT / "tests" / "slow_run.py"), *map(str, command(folder, out))]
    for _ in range(3):
        running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = tmp_path / f"out.jsonl{SUFFIX}"
        end = time.monotonic() + 60
        wanted = (journal.stat().st_size if journal.exists() else 0) + draw.randrange(1, 1500)
        while running.poll() is None and time.monotonic() < end:
            if journal.exists() and journal.stat().st_size >= wanted:
                break
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
    if not out.exists():
        done = cli(*command(folder, out))
        assert done.code == 0, done.err
    assert lines_of(out) == lines_of(folder / "whole.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]

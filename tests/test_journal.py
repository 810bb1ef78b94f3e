"""Nothing is lost: journals, runs that were killed, and what is refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import cli, write_small_profile
from family_helpers import build, save

from benchmarks.crashes import (
    COUNT,
    GEN,
    choose_end,
    killed_and_resumed,
    lines_of,
    planning,
    running,
    write_prompts,
)
from planner.errors import InputError, RunError
from runtime.journal import SUFFIX, Journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, prompts that end at different steps and sample in different ways, a plan for them."""
    d = tmp_path_factory.mktemp("journal")
    save(build("llama"), d / "model")
    write_small_profile(d / "small.yaml")
    write_prompts(d / "prompts.jsonl")
    complete(d, d / "endless.jsonl")
    choose_end(d, d / "endless.jsonl")
    complete(d, d / "whole.jsonl")
    return d


def complete(d: Path, out: Path) -> None:
    """Plan, and run without a disturbance."""
    for words in (planning(d), running(d, out)):
        done = cli(*words)
        assert done.code == 0, done.err


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


def test_an_output_may_be_in_a_folder_that_is_not_there_yet(folder: Path, tmp_path: Path) -> None:
    """Its journal is written first, after the first requests: it was refused then, and their work lost."""
    out = tmp_path / "new" / "deeper" / "out.jsonl"
    complete(folder, out)
    assert lines_of(out) == lines_of(folder / "whole.jsonl")
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


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
    from runtime import issuing  # noqa: PLC0415

    monkeypatch.setattr(issuing, "LOOKAHEAD", 8)
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
        assert cli(*running(folder, out)).code == 0
    assert lines_of(out) == whole
    for text in draw.sample(kept["text"], 4):
        (tmp_path / f"again.jsonl{SUFFIX}").write_text(text, encoding="utf-8")
        done = cli(*running(folder, tmp_path / "again.jsonl"))
        assert done.code == 0 and "going on: " in done.err, done.err
        assert lines_of(tmp_path / "again.jsonl") == whole
        (tmp_path / "again.jsonl").unlink()


def test_a_run_of_nothing_left_only_writes(folder: Path, tmp_path: Path) -> None:
    whole, out = lines_of(folder / "whole.jsonl"), tmp_path / "out.jsonl"
    cli(*running(folder, out))
    assert lines_of(out) == whole
    done = cli(*running(folder, tmp_path / "b.jsonl"), "--json")
    assert done.code == 0 and done.json["policy"]


def test_the_journal_of_other_prompts_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    Journal(out, "other").write({"r0": [1]}, ended=True)
    done = cli(*running(folder, out))
    assert (done.code, done.out) == (2, "")
    assert "not the journal of this plan and these prompts" in done.err
    assert not out.exists()


@pytest.mark.parametrize("seed", range(int(os.environ.get("CRASHES", "1"))))
def test_killed_at_any_moment_and_started_again(folder: Path, tmp_path: Path, seed: int) -> None:
    """SIGKILL, several times: every id once, with the tokens of a run that was left alone."""
    found = killed_and_resumed(folder, tmp_path / "out.jsonl", seed, kills=2)
    assert found.whole and found.kills, found
    assert lines_of(tmp_path / "out.jsonl") == lines_of(folder / "whole.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]

"""Lines of a prompt file that cannot be run: each is named with its number, and the others are answered."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import LENGTHS, cli, write_prompts, write_small_profile

from planner.errors import InputError
from planner.plan import read_plan
from planner.workload import Workload
from runtime.continuation import job_of
from runtime.journal import Journal
from runtime.prompt_file import as_planned, prompt_workload, read_prompts
from runtime.prompts import Text, TokenizerError

GOOD = '{"id": "a", "tokens": [1, 2]}'
LINES = {
    "{oops": "not valid JSON", "[" * 100_000: "not valid JSON", "[1]": "a prompt line is a JSON object",
    '{"tokens": [1], "max_tokens": 3}': "unknown key 'max_tokens'. Did you mean",
    '{"tokens": [1], "prompt": "Hello"}': "give either 'prompt' or 'tokens': both are",
    '{"id": "b"}': "give either 'prompt' or 'tokens': neither is",
    '{"prompt": ""}': "prompt is text, at least one character", '{"prompt": 7}': "prompt is text",
    '{"tokens": [1], "temperature": -1}': "temperature is a number from 0 to 100, got -1",
    '{"tokens": [1], "temperature": "hot"}': 'temperature is a number from 0 to 100, got "hot"',
    '{"tokens": [1], "temperature": NaN}': "temperature is a number from 0 to 100, got NaN",
    '{"tokens": [1], "top_p": 0}': "top_p = 0 keeps no token",
    '{"tokens": [1], "top_p": 1.5}': "top_p is a number from 0 to 1, got 1.5",
    '{"tokens": [1], "top_k": 2.5}': "top_k is a whole number from 0 to 10000000",
    '{"tokens": [1], "seed": -3}': "seed is a whole number from 0 to",
    '{"tokens": [1], "ignore_eos": 1}': "ignore_eos is true or false, got 1",
    '{"tokens": [1], "stop": [""]}': "stop is text, or a list of at most 16 texts",
    '{"tokens": [1], "stop": 5}': "stop is text, or a list",
    '{"tokens": [1], "stop": ["."]}': "stop is text, which needs a tokenizer",
    '{"tokens": [-1]}': "tokens is a list of whole numbers", '{"tokens": [1.5]}': "tokens is a list of whole numbers",
    '{"tokens": [true]}': "tokens is a list of whole numbers", '{"tokens": "1 2"}': "tokens is a list of whole numbers",
    '{"tokens": []}': "tokens is a list of whole numbers, at least one",
    '{"tokens": [1], "max_new_tokens": 0}': "max_new_tokens is a whole number above 0, got 0",
    '{"tokens": [1], "max_new_tokens": "9"}': 'max_new_tokens is a whole number above 0, got "9"',
    '{"id": 7, "tokens": [1]}': "id: 7 is not an id", '{"id": "", "tokens": [1]}': 'id: "" is not an id',
    '{"id": "\\u001b[0m", "tokens": [1]}': "is not an id", '{"id": "\\ud800", "tokens": [1]}': "is not an id",
    '{"id": "a", "tokens": [1]}': 'id "a" is already used on line 1',
    '{"custom_id": "b", "body": 5}': "body is an object with 'prompt' or 'messages', got 5",
    '{"custom_id": "b", "bodies": {}}': "unknown key 'bodies' of a batch",
    '{"custom_id": "b", "body": {"prompts": "x"}}': "unknown key 'body.prompts'. Did you mean",
    '{"custom_id": "b", "body": {"n": 3}}': "body.n = 3 is not served",
    '{"custom_id": "b", "body": {"messages": [], "prompt": "x"}}': "give either 'prompt' or 'messages': both are here",
}  # fmt: skip


@pytest.mark.parametrize(("line", "says"), LINES.items(), ids=[line[:40] for line in LINES])
def test_a_bad_line_is_named_and_the_others_are_read(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n" + '{"id": "z", "tokens": [3]}\n', encoding="utf-8")
    found = read_prompts(path, Text(None))
    assert [(p.id, p.place, p.where) for p in found.good] == [("a", 0, "line 1"), ("z", 2, "line 4")]
    (bad,) = found.bad
    assert (bad.number, bad.place) == (3, 1)
    assert str(bad.mistake).startswith("line 3: ") and says in str(bad.mistake)
    assert bad.id not in ("a", "z"), "every id once"
    with pytest.raises(InputError, match="line 3: "):
        prompt_workload(path, Text(None))


@pytest.mark.parametrize(
    "line", ['{"prompt": "Hello"}', '{"custom_id": 5, "body": {"messages": [{"role": "user", "content": "x"}]}}']
)
def test_text_without_a_tokenizer_is_no_fault_of_a_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: text needs the tokenizer of a checkpoint"):
        read_prompts(path, Text(None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no tokenizer here"):
        read_prompts(path, Text(tmp_path / "empty"))
    assert issubclass(TokenizerError, InputError)


def test_all_bad_lines_of_a_workload_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text('{"prompt_len": 4, "gen_len": 2}\n{oops\n\n{"prompt_len": 0, "gen_len": 2}\n[]\n', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Workload.from_jsonl(path)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: 3 mistakes"
    assert [line.split(": ")[0].strip() for line in lines] == ["line 2", "line 4", "line 5"]


# ---- runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of eight requests, their prompts, and what they are answered with."""
    d = tmp_path_factory.mktemp("lines")
    write_small_profile(d / "small.yaml")
    done = cli("plan", "--model", "opt-tiny", "--hardware", d / "small.yaml", *LENGTHS.split(), "-o", d / "plan.yaml")
    assert done.code == 0, done.err
    write_prompts(d / "good.jsonl")
    done = cli("run", d / "plan.yaml", "--input", d / "good.jsonl", "--output", d / "whole.jsonl")
    assert done.code == 0, done.err
    return d


def run(folder: Path, lines: list[str]) -> tuple[int, str, list[dict[str, Any]], list[dict[str, Any]]]:
    """(exit code, stderr, answers, bad lines as JSON has them) of a run with these lines."""
    path, out = folder / "asked.jsonl", folder / "out.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = cli("run", folder / "plan.yaml", "--input", path, "--output", out, "--json")
    assert [one.name for one in folder.glob("out.jsonl*")] == ["out.jsonl"], "the journal is gone"
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return done.code, done.err, answers, done.json["bad_lines"]


def test_bad_lines_beside_those_planned_are_answered_with_their_error(folder: Path) -> None:
    good = (folder / "good.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [json.loads(line) for line in (folder / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    batch = '{"custom_id": "q", "body": {"n": 3}}'
    code, err, answers, bad = run(folder, [good[0], "{oops", *good[1:], batch, '{"id": "p3", "tokens": [1]}'])
    assert code == 3
    assert "left out, of 11 lines: " in err and ": 3 mistakes\n  line 2: not valid JSON" in err
    assert err.splitlines()[-1].startswith("error: 3 of 11 lines of ")
    assert [one for one in answers if one.get("finish_reason") == "length"] == whole
    assert [(one["line"], one["id"]) for one in bad] == [(2, None), (10, "q"), (11, None)]
    assert answers[1]["id"] is None and answers[1]["error"].startswith("line 2: not valid JSON")
    assert answers[9]["custom_id"] == "q" and answers[9]["response"] is None
    assert answers[9]["error"]["message"] == "line 10: body.n = 3 is not served. Leave it out"
    assert answers[10]["finish_reason"] == "error" and answers[10]["id"] is None


def test_lines_that_spoilt_since_the_plan_are_left_out_of_it(folder: Path) -> None:
    """No JSON any more, a token that the model lacks, too long: the others have the same tokens as before."""
    good = (folder / "good.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [json.loads(line) for line in (folder / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    beyond = json.dumps({"id": "p5", "tokens": [1] * 63 + [256]})
    long = json.dumps({"id": "p6", "tokens": [1] * 513})
    code, err, answers, bad = run(folder, [*good[:2], good[2][:-1], *good[3:5], beyond, long, *good[7:]])
    assert code == 3 and "planned again for the 5 requests" in err
    assert [answers[i] for i in (0, 1, 3, 4, 7)] == [whole[i] for i in (0, 1, 3, 4, 7)]
    assert 'prompt "p6" needs 513 positions, opt-tiny has 512' in answers[6]["error"]
    assert "token 256 is outside the vocabulary of 256" in answers[5]["error"] and answers[5]["id"] == "p5"
    assert [one["line"] for one in bad] == [3, 6, 7]


def test_a_run_with_bad_lines_goes_on_after_a_crash(folder: Path) -> None:
    good = (folder / "good.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [json.loads(line) for line in (folder / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [*good[:3], "{oops", *good[4:]]
    (folder / "asked.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plan = read_plan(folder / "plan.yaml")
    asked = as_planned(read_prompts(folder / "asked.jsonl", Text(None)), plan)
    journal = Journal(folder / "out.jsonl", job_of(plan, asked.good, "random 0"))
    journal.write({"p0": whole[0]["tokens"], "p7": whole[7]["tokens"]}, ended=True)
    journal.write({"p1": whole[1]["tokens"][:3]}, ended=False)
    code, err, answers, _ = run(folder, lines)
    assert code == 3 and "going on: 2 of 7 requests were finished, 1 begun" in err
    assert [one for one in answers if one["id"] is not None] == [one for one in whole if one["id"] != "p3"]
    assert answers[3]["error"].startswith("line 4: ")


def test_no_line_whatever_breaks_the_reading(tmp_path: Path) -> None:
    """Good lines with values changed at random: read, or refused."""
    draw, path = random.Random(7), tmp_path / "prompts.jsonl"
    plain = {"id": "b", "tokens": [1, 2], "max_new_tokens": 3, "top_p": 0.5, "top_k": 3, "seed": 1, "ignore_eos": True}
    batch = {"custom_id": "c", "method": "POST", "url": "/v1", "body": {"prompt": "x", "max_tokens": 3, "n": 1}}
    odd = [None, True, -1, 0, 1, "", "1e9", [], {}, float("nan"), 10**30, "\ud800", "a\u2028", [[]], {"a": 1}, 0.5]
    lines = [GOOD]
    for _ in range(400):
        line = json.loads(json.dumps(draw.choice([plain, batch])))
        inner = line["body"] if "body" in line and draw.random() < 0.5 else line
        inner[draw.choice([*inner, "id", "custom_id", "stop"])] = draw.choice(odd)
        text = json.dumps(line)
        lines.append(text if draw.random() < 0.9 else text[: draw.randrange(1, len(text))])
    path.write_text("\n".join(lines), encoding="utf-8")
    tokenizer = Text(tmp_path)
    tokenizer.__dict__["_tokenizer"] = Letters()
    found = read_prompts(path, tokenizer)
    assert found.good and found.bad and len(found) == len(lines)
    assert all(one.mistake.key.startswith(f"line {one.number}") for one in found.bad)
    names = [one.id for one in (*found.good, *found.bad) if one.id is not None]
    assert len(names) == len(set(names))


class Letters:
    """A tokenizer of one token a letter; like real ones, it takes no half of a surrogate pair."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

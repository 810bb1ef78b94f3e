"""Workloads: what comes in, what is refused and where, and what a plan keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.model import load_model
from planner.workload import MAX_TOKENS, Request, Workload, check_fits

GOOD = '{"id": "a", "prompt_len": 5, "gen_len": 3}'


def written(folder: Path, text: str) -> Path:
    path = folder / "work.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_uniform() -> None:
    work = Workload.uniform(3, 10, 4)
    assert [request.id for request in work.requests] == ["0", "1", "2"]
    assert (len(work), work.total_prompt_tokens, work.total_generated_tokens, work.max_context) == (3, 30, 12, 14)
    assert work.classes() == {(10, 4): [0, 1, 2]}
    assert work.to_plain() == {"runs": [[3, 10, 4]]}
    assert work.requests[0].positions == 13


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (True, 1, 1), (1, 2.0, 1), (10**9, 1, 1)])
def test_uniform_refuses_bad_counts(numbers: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InputError):
        Workload.uniform(*numbers)


def test_jsonl(tmp_path: Path) -> None:
    text = f'{GOOD}\n\n   \n{{"gen_len": 1, "prompt_len": 7}}\r\n{{"id": "é\u2028", "prompt_len": 5, "gen_len": 3}}'
    with pytest.raises(InputError, match="line 5: id"):  # the separator is one line of JSON, but no printable id
        Workload.from_jsonl(written(tmp_path, text))
    work = Workload.from_jsonl(str(written(tmp_path, text.replace("\u2028", ""))))
    assert work.requests == (Request("a", 5, 3), Request("1", 7, 1), Request("é", 5, 3))
    assert work.classes() == {(5, 3): [0, 2], (7, 1): [1]}


def test_largest_lengths_are_accepted(tmp_path: Path) -> None:
    line = f'{{"prompt_len": {MAX_TOKENS}, "gen_len": 1}}\n'
    assert Workload.from_jsonl(written(tmp_path, line)).max_context == MAX_TOKENS + 1


BAD_LINES = [
    ("{", "line 2", "not valid JSON"),
    ("[" * 100_000, "line 2", "not valid JSON"),
    ('{"prompt_len": ' + "9" * 5000 + ', "gen_len": 1}', "line 2", "not valid JSON"),
    ("[5, 3]", "line 2", "is not an object"),
    ("null", "line 2", "null is not an object"),
    ('{"prompt_len": 5}', "line 2: gen_len", "missing"),
    ('{"id": "b", "gen_len": 5}', "line 2: prompt_len", "missing"),
    ('{"prompt_len": 5, "genlen": 3}', "line 2: genlen", "unknown key. Did you mean 'gen_len'"),
    ('{"prompt_len": 5, "gen_len": 3, "x": 1}', "line 2: x", "unknown key"),
    ('{"prompt_len": "5", "gen_len": 3}', "line 2: prompt_len", '"5" is not a whole number'),
    ('{"prompt_len": 5.0, "gen_len": 3}', "line 2: prompt_len", "5.0 is not a whole number"),
    ('{"prompt_len": 5, "gen_len": true}', "line 2: gen_len", "true is not a whole number"),
    ('{"prompt_len": 5, "gen_len": null}', "line 2: gen_len", "null is not a whole number"),
    ('{"prompt_len": 5, "gen_len": NaN}', "line 2: gen_len", "is not a whole number"),
    ('{"prompt_len": 0, "gen_len": 3}', "line 2: prompt_len", "0 is out of range. It must be between 1"),
    ('{"prompt_len": 5, "gen_len": -3}', "line 2: gen_len", "-3 is out of range"),
    ('{"prompt_len": 10000001, "gen_len": 3}', "line 2: prompt_len", "and 10000000"),
    ('{"id": 7, "prompt_len": 5, "gen_len": 3}', "line 2: id", "7 is not an id"),
    ('{"id": "", "prompt_len": 5, "gen_len": 3}', "line 2: id", "is not an id"),
    ('{"id": null, "prompt_len": 5, "gen_len": 3}', "line 2: id", "null is not an id"),
    ('{"id": "\\ud800", "prompt_len": 5, "gen_len": 3}', "line 2: id", "is not an id"),
    (GOOD, "line 2: id", "'a' is already used on line 1"),
]


@pytest.mark.parametrize(("line", "place", "text"), BAD_LINES, ids=[text for _, _, text in BAD_LINES])
def test_bad_lines_name_file_line_and_cure(line: str, place: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{GOOD}\n{line}\n")
    with pytest.raises(InputError) as caught:
        Workload.from_jsonl(path)
    assert caught.value.where == f"{path}: {place}"
    assert text in str(caught.value)
    assert caught.value.cure


def test_given_and_default_ids_may_not_meet(tmp_path: Path) -> None:
    text = '{"id": "1", "prompt_len": 5, "gen_len": 3}\n{"prompt_len": 5, "gen_len": 3}\n'
    with pytest.raises(InputError, match="'1' is already used on line 1"):
        Workload.from_jsonl(written(tmp_path, text))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no request in this file"):
        Workload.from_jsonl(written(tmp_path, text))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such workload file"):
        Workload.from_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        Workload.from_jsonl(tmp_path / "binary")


def test_a_workload_is_neither_empty_nor_ambiguous() -> None:
    with pytest.raises(InputError, match="at least one"):
        Workload(())
    with pytest.raises(InputError, match="used twice"):
        Workload((Request("a", 1, 1), Request("a", 2, 2)))


LENGTHS = st.integers(1, 3)
REQUESTS = st.lists(st.tuples(st.sampled_from("abcdefgh0123"), LENGTHS, LENGTHS), min_size=1, unique_by=lambda r: r[0])


@given(REQUESTS)
def test_plain_round_trip(rows: list[tuple[str, int, int]]) -> None:
    work = Workload(tuple(Request(*row) for row in rows))
    again = Workload.from_plain(work.to_plain())
    assert again == work
    assert again.content_hash == work.content_hash
    assert sum(len(members) for members in work.classes().values()) == len(work)


def test_plain_is_compact_and_keeps_order() -> None:
    lengths = [(5, 3), (5, 3), (7, 1), (5, 3)]
    work = Workload(tuple(Request(str(i), *pair) for i, pair in enumerate(lengths)))
    assert work.to_plain() == {"runs": [[2, 5, 3], [1, 7, 1], [1, 5, 3]]}
    named = Workload((Request("b", 5, 3), Request("a", 5, 3)))
    assert named.to_plain() == {"runs": [[2, 5, 3]], "ids": ["b", "a"]}
    assert named.content_hash != Workload.uniform(2, 5, 3).content_hash


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"runs": []},
        {"runs": 3},
        {"runs": [[1, 2]]},
        {"runs": [[1, 2, 3]], "more": 1},
        {"runs": [["1", 2, 3]]},
        {"runs": [[-1, 2, 3], [2, 2, 3]]},
        {"runs": [[10**7, 2, 3], [10**7, 2, 3]]},
        {"runs": [[1, 2, 3]], "ids": "a"},
        {"runs": [[1, 2, 3]], "ids": [1]},
        {"runs": [[1, 2, 3]], "ids": ["a", "b"]},
        {"runs": [[2, 2, 3]], "ids": ["a", "a"]},
    ],
)
def test_from_plain_refuses_anything_else(plain: Any) -> None:
    with pytest.raises(InputError) as caught:
        Workload.from_plain(plain, where="plan.yaml")
    assert caught.value.where.startswith("plan.yaml")


def test_check_fits_allows_the_last_token_beyond_the_table() -> None:
    model = load_model("opt-tiny")  # 512 positions
    check_fits(Workload.uniform(2, 500, 13), model)
    with pytest.raises(InputError, match=r"request '0' needs 513 positions .* opt-tiny has 512; 2 of 2 requests"):
        check_fits(Workload.uniform(2, 500, 14), model)
    ragged = Workload((Request("short", 5, 5), Request("long", 600, 1)))
    with pytest.raises(InputError, match=r"request 'long' needs 600 positions .* opt-tiny has 512\. Keep"):
        check_fits(ragged, model)

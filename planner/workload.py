"""Workloads: how many tokens each request brings (its prompt) and how many it wants (its generation)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from planner.errors import InputError, Mistake, mistaken_file, nearest
from planner.files import content_hash, read_text
from planner.model import ModelSpec

MAX_TOKENS = 10**7  # of one prompt or one generation: beyond it is a typing mistake
MAX_REQUESTS = 10**7
LINE_KEYS = {"id", "prompt_len", "gen_len"}
EXAMPLE = '{"id": "a", "prompt_len": 512, "gen_len": 32}'


@dataclass(frozen=True, slots=True)
class Request:
    """One request; lengths in tokens. Raises InputError for lengths that are no whole number in 1..MAX_TOKENS."""

    id: str
    prompt_len: int
    gen_len: int

    def __post_init__(self) -> None:
        if type(self.id) is not str or not self.id or not self.id.isprintable():
            raise InputError(f"{_short(self.id)} is not an id", where="id", cure='Write short text in quotes: "7"')
        _check_count("prompt_len", self.prompt_len, MAX_TOKENS)
        _check_count("gen_len", self.gen_len, MAX_TOKENS)

    @property
    def positions(self) -> int:
        """Tokens the model holds at most: the last generated one is never fed back."""
        return self.prompt_len + self.gen_len - 1


def by_length(request: Request) -> tuple[int, int]:
    """What requests are sorted by where those that end together belong together."""
    return request.gen_len, request.prompt_len


def _check_count(key: str, value: object, limit: int) -> None:
    if type(value) is int and 0 < value <= limit:  # a bool is an int to isinstance
        return
    if type(value) is int:
        raise InputError(f"{_short(value)} is out of range", where=key, cure=f"It must be between 1 and {limit}")
    cure = "Write a whole number without quotes or decimal point"
    raise InputError(f"{_short(value)} is not a whole number", where=key, cure=cure)


def _short(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class Workload:
    """Requests in the order they came. Raises InputError when there is none, or an id is used twice."""

    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError("a workload needs at least one request", where="workload")
        seen: set[str] = set()
        for request in self.requests:
            if request.id in seen:
                raise InputError(f"id {request.id!r} is used twice", where="workload", cure="Ids must differ")
            seen.add(request.id)

    def __len__(self) -> int:
        return len(self.requests)

    @classmethod
    def uniform(cls, n: int, prompt_len: int, gen_len: int) -> Workload:
        """`n` requests of the same lengths in tokens, with ids "0", "1", ..."""
        return cls._from_runs([[n, prompt_len, gen_len]])

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Workload:
        """One request per line, {"id", "prompt_len", "gen_len"}; blank lines do not count.

        Without an id a request is called by its place among the requests, from "0". Raises InputError for anything
        else than that, and for ids used twice: all lines that are wrong at once, each with its number.
        """
        requests: list[Request] = []
        wrong: list[Mistake] = []
        lines_by_id: dict[str, int] = {}
        # Not splitlines: it also cuts at characters that JSON allows inside text.
        for number, line in enumerate(read_text(Path(path), "workload").split("\n"), start=1):
            if not line or line.isspace():
                continue
            try:
                request = _parse(line, str(len(requests) + len(wrong)))
                first = lines_by_id.setdefault(request.id, number)
                if first != number:
                    cure = "Give every line its own id, or leave all ids out"
                    raise InputError(f"id {request.id!r} is already used on line {first}", where="id", cure=cure)
                requests.append(request)
            except InputError as error:
                place = f"line {number}" + (f": {error.where}" if error.where else "")
                wrong.append(Mistake(place, error.what, error.cure))
        if wrong:
            raise mistaken_file(str(path), wrong)
        if not requests:
            raise InputError("no request in this file", where=str(path), cure=f"Write lines like {EXAMPLE}")
        return cls(tuple(requests))

    @cached_property
    def total_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(r.prompt_len for r in self.requests)

    @cached_property
    def total_generated_tokens(self) -> int:
        """Tokens that all requests together generate, if none stops early."""
        return sum(r.gen_len for r in self.requests)

    @cached_property
    def max_context(self) -> int:
        """Tokens of the longest request, prompt and generation."""
        return max(r.prompt_len + r.gen_len for r in self.requests)

    def classes(self) -> dict[tuple[int, int], list[int]]:
        """Indices of the requests by (prompt_len, gen_len): within a class they are interchangeable."""
        members: dict[tuple[int, int], list[int]] = {}
        for index, request in enumerate(self.requests):
            members.setdefault((request.prompt_len, request.gen_len), []).append(index)
        return members

    @cached_property
    def content_hash(self) -> str:
        """The same for the same requests in the same order."""
        return content_hash(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """Lists and numbers for a file: runs of [count, prompt_len, gen_len], and the ids unless "0", "1", ..."""
        grouped = groupby((r.prompt_len, r.gen_len) for r in self.requests)
        plain: dict[str, Any] = {"runs": [[sum(1 for _ in group), *lengths] for lengths, group in grouped]}
        if any(request.id != str(index) for index, request in enumerate(self.requests)):
            plain["ids"] = [request.id for request in self.requests]
        return plain

    @classmethod
    def from_plain(cls, data: Any, where: str = "workload") -> Workload:
        """What `to_plain` wrote; InputError, naming `where`, for anything else."""
        cure = "runs: a list of [count, prompt_len, gen_len]; ids: a list of text, one per request, or absent"
        if not isinstance(data, dict) or "runs" not in data or not data.keys() <= {"runs", "ids"}:
            raise InputError("a workload has runs and, if named, ids", where=where, cure=cure)
        runs, ids = data["runs"], data.get("ids")
        if not isinstance(runs, list) or not all(isinstance(run, list) and len(run) == 3 for run in runs):
            raise InputError(f"{_short(runs)} is not a list of runs", where=f"{where}: runs", cure=cure)
        if ids is not None and not isinstance(ids, list):
            raise InputError(f"{_short(ids)} is not a list of ids", where=f"{where}: ids", cure=cure)
        try:
            return cls._from_runs(runs, ids)
        except InputError as error:
            raise InputError(error.what, where=f"{where}: {error.where}", cure=error.cure) from None

    @classmethod
    def _from_runs(cls, runs: list[list[Any]], ids: list[Any] | None = None) -> Workload:
        for count, _, _ in runs:
            _check_count("requests", count, MAX_REQUESTS)
        total = sum(count for count, _, _ in runs)
        if runs:
            _check_count("requests", total, MAX_REQUESTS)  # before any of them is made
        if ids is not None and len(ids) != total:
            raise InputError(f"{len(ids)} ids for {total} requests", where="ids", cure="Give each its own id")
        names: Iterable[Any] = ids if ids is not None else map(str, range(total))
        lengths = ((prompt, gen) for count, prompt, gen in runs for _ in range(count))
        return cls(tuple(Request(name, *pair) for name, pair in zip(names, lengths, strict=True)))


def _parse(line: str, default_id: str) -> Request:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", None) or "unreadable"
        raise InputError(f"not valid JSON: {what}", cure=f"Write one object per line, like {EXAMPLE}") from None
    if not isinstance(data, dict):
        raise InputError(f"{_short(data)} is not an object", cure=f"Write one object per line, like {EXAMPLE}")
    if data.keys() != LINE_KEYS:
        unknown, missing = data.keys() - LINE_KEYS, LINE_KEYS - data.keys() - {"id"}
        if unknown:
            raise InputError("unknown key", where=min(unknown), cure=nearest(min(unknown), LINE_KEYS))
        if missing:
            raise InputError("this key is missing", where=min(missing), cure=f"Write lines like {EXAMPLE}")
    return Request(data.get("id", default_id), data["prompt_len"], data["gen_len"])


def check_fits(workload: Workload, model: ModelSpec) -> None:
    """InputError, naming the longest request, when one needs more positions than `model` has."""
    longest, limit = max(workload.requests, key=lambda request: request.positions), model.max_positions
    if longest.positions <= limit:
        return
    count = sum(request.positions > limit for request in workload.requests)
    need = f"{longest.positions} positions (prompt_len {longest.prompt_len} + gen_len {longest.gen_len} - 1)"
    more = f"; {count} of {len(workload)} requests do not fit" if count > 1 else ""
    what = f"request {longest.id!r} needs {need}, {model.name} has {limit}{more}"
    cure = f"Keep prompt_len + gen_len at {limit + 1} or below, or choose a model with a longer context"
    raise InputError(what, where="workload", cure=cure)

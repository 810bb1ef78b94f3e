"""Prompts in, completions out: JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from planner.errors import InputError, nearest
from planner.files import read_text, write_whole
from planner.workload import Request, Workload

KEYS = ("id", "prompt", "tokens", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")
NOT_YET = {"temperature": 0, "top_p": 1, "top_k": 0, "seed": None, "stop": None}
"""Sampling fields and the only value this greedy runtime accepts for each."""


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file, as token ids."""

    id: str
    tokens: list[int]
    max_new_tokens: int


def read_prompts(path: Path, tokenizer: Tokenizer | None) -> list[Prompt]:
    """InputError names the line: bad JSON, unknown key, text without a tokenizer, sampling that is not greedy."""
    found: list[Prompt] = []
    ids: set[str] = set()
    for number, line in enumerate(read_text(path, "prompt").splitlines(), start=1):
        if line.strip():
            prompt = _parse(line, f"{path}, line {number}", str(len(found)), tokenizer)
            if prompt.id in ids:
                raise InputError(f"id {prompt.id!r} is used twice", where=f"{path}, line {number}")
            ids.add(prompt.id)
            found.append(prompt)
    if not found:
        raise InputError("no prompts in this file", where=str(path))
    return found


def _parse(line: str, where: str, default_id: str, tokenizer: Tokenizer | None) -> Prompt:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=where) from None
    if not isinstance(data, dict):
        raise InputError("a prompt line is a JSON object", where=where, cure='{"id": "a", "prompt": "Hello"}')
    for key in data:
        if key not in KEYS:
            raise InputError(f"unknown key '{key}'", where=where, cure=nearest(str(key), KEYS))
    for key, greedy in NOT_YET.items():
        if key in data and data[key] not in (greedy, None):
            raise InputError(f"{key} = {data[key]!r}: this runtime decodes greedily", where=where, cure="Leave it out")
    new = data.get("max_new_tokens", 16)
    if type(new) is not int or not 0 < new <= 10**6:
        raise InputError(f"max_new_tokens is a whole number above 0, got {new!r}", where=where)
    identity = data.get("id", default_id)
    if type(identity) is not str or not identity:
        raise InputError(f"id is text, got {identity!r}", where=where)
    return Prompt(identity, _tokens(data, where, tokenizer), new)


def _tokens(data: dict[str, Any], where: str, tokenizer: Tokenizer | None) -> list[int]:
    if ("prompt" in data) == ("tokens" in data):
        raise InputError("give either 'prompt' or 'tokens'", where=where)
    if "tokens" in data:
        tokens = data["tokens"]
        if not isinstance(tokens, list) or not tokens or any(type(t) is not int or t < 0 for t in tokens):
            raise InputError("tokens is a list of whole numbers, at least one", where=where)
        return tokens
    if tokenizer is None:
        raise InputError("text needs a tokenizer", where=where, cure="Give --checkpoint DIR, or 'tokens'")
    if not isinstance(data["prompt"], str) or not data["prompt"]:
        raise InputError("prompt is text, at least one character", where=where)
    return tokenizer.encode(data["prompt"])


def as_workload(prompts: list[Prompt]) -> Workload:
    """The lengths that a plan needs."""
    return Workload(tuple(Request(p.id, len(p.tokens), p.max_new_tokens) for p in prompts))


def write_completions(path: Path, prompts: list[Prompt], tokens: list[list[int]], tokenizer: Tokenizer | None) -> None:
    """One line per prompt, in order: id, text (with a tokenizer), tokens, finish_reason."""
    lines = [
        json.dumps({
            "id": prompt.id, "text": tokenizer.decode(generated) if tokenizer else None,
            "tokens": generated, "finish_reason": "length",
        })
        for prompt, generated in zip(prompts, tokens, strict=True)
    ]  # fmt: skip
    write_whole(path, "\n".join(lines) + "\n")


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint folder; InputError when there is none."""
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import, needed for text only)

    try:
        found = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no tokenizer here: {reason}", where=str(checkpoint), cure="Give 'tokens' instead") from None
    return cast(Tokenizer, found)


def needs_text(path: Path) -> bool:
    """True when the first line gives text rather than token ids."""
    first = next((line for line in read_text(path, "prompt").splitlines() if line.strip()), "{}")
    return '"prompt"' in first and '"tokens"' not in first

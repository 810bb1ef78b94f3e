"""Prompts as JSON lines. Imports nothing heavy: lengths of token ids can be planned without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from planner.errors import InputError, nearest
from planner.files import read_text
from planner.plan import Plan
from planner.workload import MAX_TOKENS, Request, Workload
from runtime import ways
from runtime.openai_batch import from_batch
from runtime.sampling import Sampling
from runtime.ways import short

KEYS = (
    "id", "prompt", "tokens", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos",
)  # fmt: skip
NEW_TOKENS = 16
"""Generated where a prompt line does not say how many."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A folder with none of these has no tokenizer."""
EXAMPLE = '{"id": "a", "prompt": "Hello", "max_new_tokens": 16}'


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool, return_dict: bool) -> list[int]: ...


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file, as token ids."""

    id: str
    tokens: list[int]
    max_new_tokens: int | None = None
    """None where the line does not say."""
    where: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Text that ends the completion, which does not contain it."""
    ignore_eos: bool = False
    """Go on beyond end tokens."""
    batch: bool = False
    """The line had the form of an OpenAI batch request, and is answered so."""

    @property
    def request(self) -> Request:
        """The lengths that a plan needs."""
        return Request(self.id, len(self.tokens), self.max_new_tokens or NEW_TOKENS)


class Text:
    """The tokenizer of a checkpoint, loaded when the first text needs it."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint, self.used = checkpoint, False

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        assert self.checkpoint is not None
        return load_tokenizer(self.checkpoint)

    def encode(self, text: str, where: str) -> list[int]:
        if self.checkpoint is None or not self.checkpoint.is_dir():
            cure = "Give the checkpoint's folder (plan --model DIR, run --checkpoint DIR), or 'tokens'"
            raise InputError("text needs the tokenizer of a checkpoint", where=where, cure=cure)
        self.used = True
        return self._tokenizer.encode(text)

    def chat(self, messages: Any, where: str) -> list[int]:
        """Token ids of a conversation, by the tokenizer's own template, ready for an answer."""
        self.encode("", where)
        try:
            return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # templates fail with anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            what = f"these messages do not fit the tokenizer's chat template: {reason}"
            raise InputError(what, where=where, cure="Give 'prompt' instead of 'messages'") from None

    def decode(self, ids: list[int]) -> str | None:
        """Without end and other special tokens; None where the prompts were token ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=True) if self.used else None


def read_prompts(path: Path, text: Text) -> list[Prompt]:
    """InputError names the line: bad JSON, unknown key, text without a tokenizer, sampling out of range."""
    found: list[Prompt] = []
    ids: dict[str, int] = {}
    # Not splitlines: it also cuts at characters that JSON allows inside text.
    for number, line in enumerate(read_text(path, "prompt").split("\n"), start=1):
        if not line or line.isspace():
            continue
        where = f"{path}, line {number}"
        prompt = _parse(line, where, str(len(found)), text)
        first = ids.setdefault(prompt.id, number)
        if first != number:
            what = f"id {prompt.id!r} is already used on line {first}"
            raise InputError(what, where=where, cure="Give every line its own id, or leave all ids out")
        found.append(prompt)
    if not found:
        raise InputError("no prompts in this file", where=str(path), cure=f"Write lines like {EXAMPLE}")
    return found


def _parse(line: str, where: str, default_id: str, text: Text) -> Prompt:
    data = _object(line, where)
    is_batch = "custom_id" in data or "body" in data
    if is_batch:
        data = from_batch(data, where, text)
    for key in data:
        if key not in KEYS:
            raise InputError(f"unknown key '{key}'", where=where, cure=nearest(str(key), KEYS))
    new = data.get("max_new_tokens")
    if new is not None and (type(new) is not int or not 0 < new <= MAX_TOKENS):
        cure = "Write a whole number without quotes"
        raise InputError(f"max_new_tokens is a whole number above 0, got {short(new)}", where=where, cure=cure)
    name, tokens = data.get("id", default_id), _tokens(data, where, text)
    sampling, stop, ignores = ways.read(data, str(name), where)
    if stop and not text.used:
        raise InputError("stop is text, which needs a tokenizer", where=where, cure="Give text prompts, or no stop")
    prompt = Prompt(name, tokens, new, where, sampling, stop, ignores, is_batch)
    try:
        assert prompt.request
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", cure=error.cure) from None
    return prompt


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", None) or "unreadable"
        raise InputError(f"not valid JSON: {what}", where=where, cure=f"Write lines like {EXAMPLE}") from None
    if not isinstance(data, dict):
        raise InputError("a prompt line is a JSON object", where=where, cure=f"Write lines like {EXAMPLE}")
    return data


def _tokens(data: dict[str, Any], where: str, text: Text) -> list[int]:
    if ("prompt" in data) == ("tokens" in data):
        found = "both are" if "prompt" in data else "neither is"
        raise InputError(f"give either 'prompt' or 'tokens': {found} here", where=where)
    if "tokens" in data:
        tokens = data["tokens"]
        if not isinstance(tokens, list) or not tokens or any(type(t) is not int or t < 0 for t in tokens):
            raise InputError("tokens is a list of whole numbers, at least one", where=where, cure="[2, 100, 7]")
        return tokens
    if not isinstance(data["prompt"], str) or not data["prompt"]:
        raise InputError("prompt is text, at least one character", where=where)
    return text.encode(data["prompt"], where)


def holds_prompts(path: Path) -> bool:
    """True when the first line of a workload file is a prompt rather than lengths."""
    first = next((line for line in read_text(path, "workload").split("\n") if line and not line.isspace()), "")
    try:
        data = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and bool({"prompt", "tokens", "body"} & data.keys())


def as_workload(prompts: Sequence[Prompt]) -> Workload:
    """The lengths that a plan needs."""
    return Workload(tuple(prompt.request for prompt in prompts))


def check_planned(prompts: Sequence[Prompt], plan: Plan, path: Path) -> None:
    """InputError unless `plan` was made for prompts of these lengths, before anything is loaded."""
    requests, cure = plan.workload.requests, f"Plan for this input: hybridserve plan --workload {path}"
    if len(prompts) != len(requests):
        what = f"{len(prompts)} prompts for a plan of {len(requests)} requests"
        raise InputError(what, where=str(path), cure=cure)
    for request, prompt in zip(requests, prompts, strict=True):
        if len(prompt.tokens) != request.prompt_len:
            what = f"prompt {prompt.id!r} has {len(prompt.tokens)} tokens, planned for {request.prompt_len}"
            raise InputError(what, where=prompt.where, cure=cure)
        if prompt.max_new_tokens not in (None, request.gen_len):
            what = f"max_new_tokens is {prompt.max_new_tokens}, planned for {request.gen_len}"
            raise InputError(what, where=prompt.where, cure=cure)
        beyond = next((t for t in prompt.tokens if t >= plan.model.vocab), None)
        if beyond is not None:
            what = f"token {short(beyond)} is outside the vocabulary of {plan.model.vocab} of {plan.model.name}"
            raise InputError(what, where=prompt.where, cure=f"Token ids are 0 to {plan.model.vocab - 1}")


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint folder; InputError when there is none."""
    if not any((checkpoint / name).exists() for name in VOCABULARIES):
        # transformers would make up a tokenizer that knows no token.
        what = f"no tokenizer here: none of {', '.join(VOCABULARIES)}"
        raise InputError(what, where=str(checkpoint), cure="Fetch it, or give 'tokens' instead of text")
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import, needed for text only)
    except ImportError:
        what = "text prompts need the transformers library"
        raise InputError(what, cure="pip install 'hybridserve[runtime]', or give 'tokens'") from None
    try:
        found = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        cure = "Fetch it again, or give 'tokens' instead of text"
        raise InputError(f"no tokenizer here: {reason}", where=str(checkpoint), cure=cure) from None
    return cast(Tokenizer, found)

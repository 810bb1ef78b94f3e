"""One prompt as a line of JSON. Imports nothing heavy: lengths of token ids can be planned without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from planner.errors import InputError, nearest
from planner.model import CONFIG_FILE, load_model
from planner.workload import MAX_TOKENS, Request
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


class TokenizerError(InputError):
    """No text can be read: every line of text would say the same, so it is no fault of one."""


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
    number: int = 0
    """Of its line, from 1."""
    place: int = 0
    """Among the lines of its file that are not blank, from 0."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Text that ends the completion, which does not contain it."""
    ignore_eos: bool = False
    """Go on beyond end tokens."""
    batch: bool = False
    """The line had the form of an OpenAI batch request, and is answered so."""

    @property
    def where(self) -> str:
        """In its file."""
        return f"line {self.number}"

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
        """TokenizerError without a tokenizer, InputError for text that it cannot read."""
        if self.checkpoint is None or not self.checkpoint.is_dir():
            cure = "Give the checkpoint's folder (plan --model DIR, run --checkpoint DIR), or 'tokens'"
            raise TokenizerError("text needs the tokenizer of a checkpoint", cure=cure)
        self.used, tokenizer = True, self._tokenizer
        try:
            return tokenizer.encode(text)
        except Exception as error:  # halves of surrogate pairs, and whatever a tokenizer does not take
            what = f"the tokenizer cannot read this text: {_reason(error)}"
            raise InputError(what, where=where, cure="Correct it, or give 'tokens'") from None

    def chat(self, messages: Any, where: str) -> list[int]:
        """Token ids of a conversation, by the tokenizer's own template, ready for an answer."""
        self.encode("", where)
        try:
            return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # templates fail with anything
            what = f"these messages do not fit the tokenizer's chat template: {_reason(error)}"
            raise InputError(what, where=where, cure="Give 'prompt' instead of 'messages'") from None

    def decode(self, ids: list[int]) -> str | None:
        """Without end and other special tokens; None where the prompts were token ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=True) if self.used else None


def parse_prompt(line: str, number: int, place: int, text: Text) -> Prompt:
    """The prompt of line `number`, called by its `place` where the line gives no id.

    InputError, naming the line: bad JSON, unknown key, sampling out of range. TokenizerError: text, but no tokenizer.
    """
    where = f"line {number}"
    data = as_object(line, where)
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
    name, tokens = data.get("id", str(place)), _tokens(data, where, text)
    sampling, stop, ignores = ways.read(data, str(name), where)
    if stop and not text.used:
        raise InputError("stop is text, which needs a tokenizer", where=where, cure="Give text prompts, or no stop")
    prompt = Prompt(name, tokens, new, number, place, sampling, stop, ignores, is_batch)
    try:
        assert prompt.request
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", cure=error.cure) from None
    return prompt


def as_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of one line; InputError, naming `where`, for anything else."""
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


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer in a checkpoint folder; TokenizerError when there is none."""
    if not any((checkpoint / name).exists() for name in VOCABULARIES):
        # transformers would make up a tokenizer that knows no token.
        what = f"no tokenizer here: none of {', '.join(VOCABULARIES)}"
        raise TokenizerError(what, where=str(checkpoint), cure="Fetch it, or give 'tokens' instead of text")
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import, needed for text only)
    except ImportError:
        what = "text prompts need the transformers library"
        raise TokenizerError(what, cure="pip install 'hybridserve[runtime]', or give 'tokens'") from None
    try:
        found = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        if (checkpoint / CONFIG_FILE).exists():
            load_model(str(checkpoint / CONFIG_FILE))  # where it is the config that is broken, this says how
        cure = "Fetch it again, or give 'tokens' instead of text"
        raise TokenizerError(f"no tokenizer here: {_reason(error)}", where=str(checkpoint), cure=cure) from None
    return cast(Tokenizer, found)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

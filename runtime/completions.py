"""What a request is answered with: where its text ends, and the line that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.files import write_whole
from runtime.openai_batch import failure, response
from runtime.prompt_file import BadLine, PromptFile
from runtime.prompts import Prompt, Text


@dataclass(frozen=True)
class Completion:
    """Of one request. `tokens` end with the end token, or with the last one of a stop text."""

    tokens: list[int]
    text: str | None
    """None where the prompts were token ids. Without end tokens and stop text."""
    reason: str
    """`stop` where the text ended by itself, else `length`."""


def completion(prompt: Prompt, tokens: Sequence[int], end_token: int | None, text: Text) -> Completion:
    """What `prompt` is answered with when the model went on with `tokens`, perhaps beyond the end."""
    kept, reason = list(tokens), "length"
    if not prompt.ignore_eos and end_token in kept:
        kept, reason = kept[: kept.index(end_token) + 1], "stop"
    said = text.decode(kept)
    cut = min((at for stop in prompt.stop if said and (at := said.find(stop)) >= 0), default=None)
    if cut is None:
        return Completion(kept, said, reason)
    assert said is not None
    count = next(n for n in range(1, len(kept) + 1) if _holds(prompt.stop, text.decode(kept[:n])))
    return Completion(kept[:count], said[:cut], "stop")


def _holds(stops: Sequence[str], said: str | None) -> bool:
    return any(stop in (said or "") for stop in stops)


def write_completions(
    path: Path, asked: PromptFile, tokens: Mapping[str, list[int]], end_token: int | None, text: Text
) -> None:
    """One line for each that was asked, in order and in its form; those that could not be run say why."""
    answers = [(p.place, _answer(p, completion(p, tokens[p.id], end_token, text))) for p in asked.good]
    in_batches = any(prompt.batch for prompt in asked.good)
    answers += [(line.place, _refusal(line, in_batches)) for line in asked.bad]
    answers.sort(key=lambda one: one[0])
    write_whole(path, "".join(f"{json.dumps(answer)}\n" for _, answer in answers))


def _answer(prompt: Prompt, done: Completion) -> dict[str, Any]:
    if prompt.batch:
        return response(prompt.id, done.text, done.reason, len(prompt.tokens), len(done.tokens))
    return {"id": prompt.id, "text": done.text, "tokens": done.tokens, "finish_reason": done.reason}


def _refusal(line: BadLine, in_batches: bool) -> dict[str, Any]:
    """Of a line that nothing can be told of, in the form of the others."""
    why = str(line.mistake)
    if line.batch or (line.id is None and in_batches):
        return failure(line.id, why)
    return {"id": line.id, "text": None, "tokens": [], "finish_reason": "error", "error": why}

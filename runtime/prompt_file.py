"""A file of prompts: the lines that can be run, and those that cannot, each with its number and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import InputError, Mistake, mistaken_file
from planner.files import read_text
from planner.model import ModelSpec
from planner.plan import Plan
from planner.workload import Workload
from runtime.prompts import EXAMPLE, Prompt, Text, TokenizerError, as_object, parse_prompt
from runtime.ways import short


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run."""

    number: int
    """Of all lines, from 1."""
    place: int
    """Among the lines that are not blank, from 0."""
    mistake: Mistake
    """Its key begins with the line, like "line 3"."""
    id: str | None
    """None where the line does not say one, or one that a line to be run has."""
    batch: bool
    """It has the form of an OpenAI batch request."""


@dataclass(frozen=True)
class PromptFile:
    """What a file asks for. Every id is in it once."""

    path: Path
    good: tuple[Prompt, ...]
    bad: tuple[BadLine, ...]

    def __len__(self) -> int:
        """Lines, blank ones left out."""
        return len(self.good) + len(self.bad)

    @property
    def mistakes(self) -> InputError:
        """Everything that is wrong with it, at once."""
        return mistaken_file(str(self.path), [line.mistake for line in self.bad])

    def without(self, wrong: Callable[[Prompt], InputError | None]) -> PromptFile:
        """With the prompts that `wrong` has something to say of among the bad lines."""
        said = [(prompt, wrong(prompt)) for prompt in self.good]
        more = [
            BadLine(one.number, one.place, Mistake(one.where, error.what, error.cure), one.id, one.batch)
            for one, error in said if error is not None
        ]  # fmt: skip
        bad = sorted([*self.bad, *more], key=lambda line: line.place)
        return replace(self, good=tuple(prompt for prompt, error in said if error is None), bad=tuple(bad))


def read_prompts(path: Path, text: Text) -> PromptFile:
    """InputError where no line is a prompt, or text has no tokenizer; what is wrong with single lines is kept."""
    good: list[Prompt] = []
    bad: list[BadLine] = []
    first: dict[str, str] = {}
    # Not splitlines: it also cuts at characters that JSON allows inside text.
    for number, line in enumerate(read_text(path, "prompt").split("\n"), start=1):
        if not line or line.isspace():
            continue
        where, place = f"line {number}", len(good) + len(bad)
        try:
            prompt = parse_prompt(line, number, place, text)
            if prompt.id in first:
                what = f"id {short(prompt.id)} is already used on {first[prompt.id]}"
                raise InputError(what, where=where, cure="Give every line its own id, or leave all ids out")
        except TokenizerError as error:
            raise InputError(error.what, where=error.where or f"{path}: {where}", cure=error.cure) from None
        except InputError as error:
            bad.append(_bad_line(line, number, place, Mistake(error.where, error.what, error.cure)))
        else:
            first[prompt.id] = where
            good.append(prompt)
    if not good and not bad:
        raise InputError("no prompts in this file", where=str(path), cure=f"Write lines like {EXAMPLE}")
    taken = Counter([prompt.id for prompt in good] + [line.id for line in bad if line.id is not None])
    own = (line if line.id is None or taken[line.id] == 1 else replace(line, id=None) for line in bad)
    found = PromptFile(path, tuple(good), tuple(own))
    if not good:
        raise found.mistakes
    return found


def _bad_line(line: str, number: int, place: int, mistake: Mistake) -> BadLine:
    """What can still be told of a line: its id, so that its answer finds who asked."""
    try:
        data = as_object(line, "")
    except InputError:
        return BadLine(number, place, mistake, None, False)
    name = data.get("custom_id", data.get("id", str(place)))
    sound = isinstance(name, str) and name and name.isprintable()
    return BadLine(number, place, mistake, name if sound else None, "custom_id" in data or "body" in data)


def holds_prompts(path: Path) -> bool:
    """True when the first line of a workload file that can be read is a prompt rather than lengths."""
    for line in read_text(path, "workload").split("\n"):
        try:
            return bool({"prompt", "tokens", "body"} & as_object(line, "").keys())
        except InputError:
            continue
    return False


def prompt_workload(path: Path, text: Text) -> Workload:
    """The lengths that a plan needs; InputError with everything that is wrong: nothing is planned for a part."""
    found = read_prompts(path, text)
    if found.bad:
        raise found.mistakes
    return Workload(tuple(prompt.request for prompt in found.good))


def as_planned(found: PromptFile, plan: Plan) -> PromptFile:
    """`found` as `plan` can run it: what its model cannot take is among the bad lines, and every prompt says for how
    many tokens it is planned.

    A plan is for the good lines, or for all of them in their places. InputError where it is for other prompts.
    """
    found = found.without(lambda prompt: _misfit(prompt, plan.model))
    if not found.good:
        raise found.mistakes
    requests, cure = plan.workload.requests, f"Plan for this input: hybridserve plan --workload {found.path}"
    if len(requests) not in (len(found.good), len(found)):
        spoilt = f" ({len(found.bad)} more lines cannot be run)" if found.bad else ""
        what = f"{len(found.good)} prompts{spoilt} for a plan of {len(requests)} requests"
        raise InputError(what, where=str(found.path), cure=cure)
    whole = len(requests) == len(found)
    pairs = [(prompt, requests[prompt.place if whole else i]) for i, prompt in enumerate(found.good)]
    wrong: list[Mistake] = []
    for prompt, request in pairs:
        if len(prompt.tokens) != request.prompt_len:
            what = f"prompt {short(prompt.id)} has {len(prompt.tokens)} tokens, planned for {request.prompt_len}"
            wrong.append(Mistake(prompt.where, what, cure))
        elif prompt.max_new_tokens not in (None, request.gen_len):
            what = f"max_new_tokens is {prompt.max_new_tokens}, planned for {request.gen_len}"
            wrong.append(Mistake(prompt.where, what, cure))
    if wrong:
        raise mistaken_file(str(found.path), wrong)
    return replace(found, good=tuple(replace(prompt, max_new_tokens=request.gen_len) for prompt, request in pairs))


def _misfit(prompt: Prompt, model: ModelSpec) -> InputError | None:
    """Why `model` cannot take a prompt, if so."""
    beyond = next((token for token in prompt.tokens if token >= model.vocab), None)
    if beyond is not None:
        what = f"token {short(beyond)} is outside the vocabulary of {model.vocab} of {model.name}"
        return InputError(what, cure=f"Token ids are 0 to {model.vocab - 1}; is it this model's tokenizer?")
    positions = len(prompt.tokens) + (prompt.max_new_tokens or 1) - 1
    if positions > model.max_positions:
        what = f"prompt {short(prompt.id)} needs {positions} positions, {model.name} has {model.max_positions}"
        return InputError(what, cure="Shorten it, or ask for fewer tokens")
    return None

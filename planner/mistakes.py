"""Every mistake of a file at once: pydantic's errors in plain words, and the contradictions that they would hide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from planner.cures import Location, annotation_at, bare, cure_for, short, unit_of, what_to_add
from planner.errors import Mistake, Mistaken

Problem = Mapping[str, Any]
ALIKE = 0.7
"""Likeness from which an unknown key stands for a missing one."""
_NOTHING: Any = object()


def find_mistakes(schema: type[BaseModel], data: dict[str, Any]) -> list[Mistake]:
    """All mistakes of `data`, in the order of the schema, contradictions between keys last.

    A misspelt key is one mistake: what is below it is checked as if it were spelt right.
    """
    problems = _problems(schema, data)
    if wrong_file := _another_kind(schema, problems):
        return [wrong_file]
    misspelt = _misspelt(problems)
    plain = {at: name for at, name in misspelt.items() if unit_of(str(at[-1])) == unit_of(name)}
    if plain:
        mended: Any = data
        for at, name in plain.items():
            mended = _renamed(mended, at, name)
        return [_did_you_mean(at, name) for at, name in plain.items()] + find_mistakes(schema, mended)
    mistaken = [one for one in problems if not _is_rule(one, schema)]
    fields = _once(mistaken, data)
    taken = {(*at[:-1], name) for at, name in misspelt.items()}
    found = [
        mistake for one in fields if not (one["type"] == "missing" and one["loc"] in taken)
        for mistake in _explain(one, schema, data, misspelt)
    ]  # fmt: skip
    return found + _contradictions(schema, data, mistaken)


def _problems(schema: type[BaseModel], data: dict[str, Any]) -> Sequence[Problem]:
    try:
        schema.model_validate(data)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _another_kind(schema: type[BaseModel], problems: Sequence[Problem]) -> Mistake | None:
    """One mistake for a file of another kind, which would be wrong in every key."""
    top = [one for one in problems if len(one["loc"]) == 1]
    missing = [str(one["loc"][0]) for one in top if one["type"] == "missing"]
    unknown = [str(one["loc"][0]) for one in top if one["type"] == "extra_forbidden"]
    required = sum(field.is_required() for field in schema.model_fields.values())
    if len(missing) * 2 <= required or not unknown:
        return None
    what = f"a file of another kind: without {', '.join(missing[:4])}, but with {', '.join(unknown[:4])}"
    return Mistake("", what, "Is this the right file?")


def _is_rule(problem: Problem, schema: type[BaseModel]) -> bool:
    """Raised by a rule between the keys of a block, not by one key."""
    kind = bare(annotation_at(schema, problem["loc"]))
    return problem["type"] == "value_error" and isinstance(kind, type) and issubclass(kind, BaseModel)


def _once(problems: Sequence[Problem], data: dict[str, Any]) -> list[Problem]:
    """Without what is said of a YAML alias again: it stands in the file once."""
    first: dict[int, Location] = {}
    found: dict[tuple[Any, ...], Problem] = {}
    for one in problems:
        node, place = data, Location()
        for part in one["loc"]:
            if isinstance(node, dict | list):
                place = first.setdefault(id(node), place)
            node, place = _value_at(node, (part,)), (*place, part)
        found.setdefault((place, one["type"]), one)
    return list(found.values())


# ---- one problem in words --------------------------------------------------------------------------


def _explain(
    problem: Problem, schema: type[BaseModel], data: dict[str, Any], misspelt: dict[Location, str]
) -> Iterator[Mistake]:
    kind, at, value = problem["type"], problem["loc"], problem.get("input")
    key = _dotted(at)
    if kind == "extra_forbidden":
        yield _did_you_mean(at, misspelt[at]) if at in misspelt else _unknown(at, schema, data)
    elif kind == "missing":
        yield Mistake(key, "this key is missing", what_to_add(at, schema))
    elif isinstance(error := problem.get("ctx", {}).get("error"), Mistaken):
        yield from (mistake.below(key) for mistake in error.mistakes)
    else:
        what = _what(kind, value) or problem["msg"].removeprefix("Value error, ")
        got = "" if isinstance(value, dict) or _what(kind, value) else f", got {short(value)}"
        yield Mistake(key, f"{what[:1].lower()}{what[1:]}{got}", cure_for(problem, schema))


def _what(kind: str, value: object) -> str:
    """The mistake in our words where pydantic's are those of programmers; "" elsewhere."""
    if isinstance(value, str) and ("float" in kind or "int" in kind):
        return f"{short(value)} is text, not a number"
    if kind in ("float_type", "int_type", "int_from_float"):
        return f"{short(value)} is not a {'' if kind == 'float_type' else 'whole '}number"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        bare_number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"{short(value)} is {'a bare number, ' if bare_number else ''}not a block of keys and values"
    shown = short(value)
    return {
        "invalid_key": "this key is not text",
        "list_type": f"{shown} is not a list",
        "string_type": f"{shown} is not text",
        "too_short": f"{shown} is empty, at least 1 item is needed",
        "string_too_short": f"{shown} is empty, at least 1 character is needed",
        "string_pattern_mismatch": f"{shown} is spelt wrongly",
    }.get(kind, "")


def _did_you_mean(at: Location, name: str) -> Mistake:
    unit = unit_of(name)
    hint = f" The unit is part of the key, and SI: '{name}'" if unit and unit != unit_of(str(at[-1])) else ""
    return Mistake(_dotted(at), "unknown key", f"Did you mean '{name}'?{hint}")


def _unknown(at: Location, schema: type[BaseModel], data: dict[str, Any]) -> Mistake:
    block = bare(annotation_at(schema, at[:-1]))
    fields = [field.alias or name for name, field in block.model_fields.items()]
    near = {name: _likeness(str(at[-1]), name) for name in fields}
    best = max(near, key=lambda name: near[name], default="")
    if near.get(best, 0.0) < ALIKE:
        return Mistake(_dotted(at), "unknown key", f"Remove it. Known here: {', '.join(sorted(fields))}")
    if best in (_value_at(data, at[:-1]) or ()):
        return Mistake(_dotted(at), "unknown key", f"Remove it: '{best}' is given already")
    return _did_you_mean(at, best)


def _dotted(at: Location) -> str:
    return ".".join(str(part) for part in at if part != "[key]")


# ---- misspelt keys -----------------------------------------------------------------------------------


def _misspelt(problems: Sequence[Problem]) -> dict[Location, str]:
    """Unknown keys that stand for a missing key of the same block, and that key."""
    missing: dict[Location, list[str]] = {}
    for one in problems:
        if one["type"] == "missing":
            missing.setdefault(one["loc"][:-1], []).append(str(one["loc"][-1]))
    pairs = sorted(
        (
            (-_likeness(str(one["loc"][-1]), name), one["loc"], name)
            for one in problems if one["type"] == "extra_forbidden"
            for name in missing.get(one["loc"][:-1], [])
        ),
        key=lambda pair: pair[0],
    )  # fmt: skip
    found: dict[Location, str] = {}
    taken: set[Location] = set()
    for likeness, at, name in pairs:
        if -likeness >= ALIKE and at not in found and (*at[:-1], name) not in taken:
            found[at] = name
            taken.add((*at[:-1], name))
    return found


def _likeness(written: str, meant: str) -> float:
    """1 for the same key; what says the same thing in another unit counts as near."""
    same_thing = unit_of(meant) is not None and written.partition("_")[0] == meant.partition("_")[0]
    return max(SequenceMatcher(None, written.lower(), meant).ratio(), ALIKE if same_thing else 0.0)


def _renamed(data: Any, at: Location, name: str) -> Any:
    """A copy of `data` in which the key at `at` is called `name`."""
    here, *below = at
    if isinstance(data, list):
        return [_renamed(one, tuple(below), name) if i == here else one for i, one in enumerate(data)]
    if not below:
        return {name if key == here else key: value for key, value in data.items()}
    return {key: _renamed(value, tuple(below), name) if key == here else value for key, value in data.items()}


def _value_at(data: Any, at: Location) -> Any:
    for part in at:
        try:
            data = data[part]
        except (LookupError, TypeError):
            return None
    return data


# ---- contradictions between keys ---------------------------------------------------------------------


def _contradictions(schema: type[BaseModel], data: dict[str, Any], problems: Sequence[Problem]) -> list[Mistake]:
    """What the rules of every block say of the keys that parsed.

    Pydantic asks a rule only when every key of its block is right, and stops at the first that is broken. Here each
    rule is asked on its own, and one whose keys are mistaken or missing says nothing.
    """
    wrong = {tuple(p for p in one["loc"] if p != "[key]") for one in problems if one["type"] != "extra_forbidden"}
    walk = _Rules(wrong)
    walk.block(schema, data, ())
    return walk.found


class _Rules:
    """Walks a file along its schema and collects the broken rules."""

    def __init__(self, wrong: set[Location]) -> None:
        self.wrong = wrong
        self.above_wrong = {at[:i] for at in wrong for i in range(len(at) + 1)}
        self.found: list[Mistake] = []

    def block(self, schema: type[BaseModel], data: Mapping[str, Any], at: Location) -> BaseModel:
        """What parsed of a block; its mistaken keys are no attributes of it, not even by default."""
        keys = {name: field.alias or name for name, field in schema.model_fields.items()}
        values = {
            key: self._value(schema.model_fields[name].annotation, data[key], (*at, key))
            for name, key in keys.items() if key in data
        }  # fmt: skip
        parsed = schema.model_construct(**{key: value for key, value in values.items() if value is not _NOTHING})
        for name, key in keys.items():
            if values.get(key) is _NOTHING:
                parsed.__dict__.pop(name, None)
        for name, rule in schema.__pydantic_decorators__.model_validators.items():
            if rule.info.mode == "after":
                self._ask(getattr(parsed, name), at)
        return parsed

    def _value(self, annotation: Any, value: Any, at: Location) -> Any:
        if at in self.wrong:
            return _NOTHING
        kind = bare(annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self.block(kind, value, at) if isinstance(value, dict) else value
        origin, inner = get_origin(kind), get_args(kind)
        if origin is dict and isinstance(value, dict):
            parts = {key: self._value(inner[1], below, (*at, key)) for key, below in value.items()}
            return {key: part for key, part in parts.items() if (*at, key) not in self.above_wrong}
        if origin is list and isinstance(value, list):
            value = [self._value(inner[0], below, (*at, i)) for i, below in enumerate(value)]
        return _NOTHING if at in self.above_wrong else value

    def _ask(self, rule: Any, at: Location) -> None:
        try:
            rule()
        except Mistaken as error:
            self.found += [mistake.below(_dotted(at)) for mistake in error.mistakes]
        except ValueError as error:
            self.found.append(Mistake(_dotted(at), str(error), "Correct one of these keys"))
        except (AttributeError, LookupError, TypeError, ArithmeticError):
            pass  # what the rule compares did not parse

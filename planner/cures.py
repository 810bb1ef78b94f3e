"""How to mend a value that a schema refuses: what belongs there, its unit, and an example to copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from planner.errors import nearest

Location = tuple[int | str, ...]
UNITS = {
    "bytes_per_s": ("bytes per second", "2.4e+10"),
    "flops": ("FLOP per second", "1.6e+14"),
    "bytes": ("bytes", "2.4e+10"),
    "s": ("seconds", "1.0e-5"),
    "s_lost_per_byte": ("seconds per byte", "1.0e-12"),
}
"""What a key may end with: the unit in words, and a value to show."""
EXAMPLES = {
    "kind": "assumed",
    "source": '"where the number is from"',
    "date": '"2026-11-23"',
    "runs": "5",
    "spread": "0.02",
    "second": "1",
    "points": "[[64, 4.9e+13], [512, 1.6e+14]]",
    "slices": "[{second: 1, points: [[64, 4.9e+13], [512, 1.6e+14]]}]",
    "id": "my-machine",
    "requests": '"0-15,18"',
    "blocks": "[[act@host, 52], [kv@host, 20]]",
}
"""What belongs into keys whose type does not say it."""
_ROOM = 150
"""Characters beyond which an example shows only the keys."""
_BOUNDS = {
    "greater_than": ("gt", "above"), "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"), "less_than_equal": ("le", "of at most"),
}  # fmt: skip


def cure_for(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """The cure of one of pydantic's errors. Never empty."""
    kind, at, value = problem["type"], problem["loc"], problem.get("input")
    if isinstance(value, str) and ("float" in kind or "int" in kind):
        return _spelling(value)
    if kind == "string_type" and isinstance(value, int | float):
        return f'Put it in quotes: "{json.dumps(value)}"'
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        unit = _unit_words(at)
        return f"Write a number {words} {problem['ctx'][key]:g}" + (f"; the unit is {unit}" if unit else "")
    if kind == "literal_error":
        return _one_of(problem, at, schema)
    if kind == "string_pattern_mismatch" and at[-1] == "id":
        return "Use letters, digits, '.', '_' and '-' only, the first a letter or digit"
    if kind == "invalid_key":
        return "Put it in quotes if it belongs here, or remove it"
    shape = example(annotation_at(schema, at), at)
    at = tuple(part for part in at if part != "[key]")
    named = f"{at[-1]}: {shape}" if at and isinstance(at[-1], str) else shape
    return f"Write a finite number, like {named}" if kind == "finite_number" else f"Write {named}"


def what_to_add(at: Location, schema: type[BaseModel]) -> str:
    """The cure of a key that is missing: its unit, and what it looks like."""
    shape = example(annotation_at(schema, at), at)
    unit = _unit_words(at)
    in_unit = f", in {unit}" if unit and shape != EXAMPLES.get(str(at[-1])) else ""
    return f"Add it{in_unit}: {at[-1]}: {shape}"


def _one_of(problem: Mapping[str, Any], at: Location, schema: type[BaseModel]) -> str:
    known = get_args(bare(annotation_at(schema, at)))
    if len(known) == 1:
        return f"Write {at[-1]}: {known[0]}, and the keys of that version"
    value = problem.get("input")
    texts = [str(one) for one in known]
    return nearest(value, texts) if isinstance(value, str) and value else f"Write one of {', '.join(texts)}"


def _spelling(value: str) -> str:
    """How to write `value`, which YAML reads as text, as a number."""
    plain = value.strip().replace("_", "")
    if plain.isascii() and plain.lstrip("+-").isdigit():
        return f"In quotes it is text: write {plain}"
    if plain.count(",") and plain.replace(",", "").replace(".", "", 1).isdigit():
        return f"Write digits without commas: {plain.replace(',', '')}"
    try:
        number = float(plain)
    except ValueError:
        return "Write a plain number; the unit is in the key"
    return f"YAML reads this spelling as text: write {spelled(number)}"


def spelled(number: float) -> str:
    """`number` as YAML reads it back: with a dot and a signed exponent."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    mantissa = mantissa.rstrip("0")
    mantissa += "0" if mantissa.endswith(".") else ""
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0') or '0'}" if exponent else str(number)


def unit_of(key: str) -> str | None:
    """The unit that a key names: one of `UNITS`."""
    base = str(key).split("_by_")[0]
    return next((unit for unit in UNITS if base == unit or base.endswith(f"_{unit}")), None)


def _unit_words(at: Location) -> str | None:
    """The unit of the number at a location: a key names it for everything below."""
    if at and (at[-1] in ("runs", "spread", "second") or (at[-1] == 0 and "points" in at[-3:])):
        return None
    unit = next((unit for part in reversed(at) if (unit := unit_of(str(part)))), None)
    return UNITS[unit][0] if unit else None


def example(annotation: Any, at: Location) -> str:
    """A value of the annotated type, as YAML writes it on one line."""
    key, kind = str(at[-1]) if at else "", bare(annotation)
    if "points" in at[-3:] and at[-1] == 0:
        return "64"  # the size of a point
    if key in EXAMPLES:
        return EXAMPLES[key]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _block(kind, at)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return str(inner[0])
    if origin is dict:
        name = (get_args(bare(inner[0])) or ("name",))[0]
        return f"{{{name}: {example(inner[1], (*at, name))}}}"
    if origin in (list, tuple):
        return f"[{', '.join(example(one, at[:-1]) for one in inner if one is not Ellipsis)}]"
    if kind is float:
        unit = next((unit for part in reversed(at) if (unit := unit_of(str(part)))), None)
        return UNITS[unit][1] if unit else "1.0"
    return {str: '"text"', bool: "true", int: "1"}.get(kind, "{...}")


def _block(schema: type[BaseModel], at: Location) -> str:
    """A block with the keys that it must have; the number first, then where it is from."""
    keys = [name for name, field in schema.model_fields.items() if field.is_required()]
    keys.sort(key=lambda name: name != "value")
    parts = [f"{k}: {example(schema.model_fields[k].annotation, (*at, k))}" for k in keys]
    text = f"{{{', '.join(parts)}}}"
    return text if len(text) <= _ROOM else f"{{{', '.join(f'{key}: ...' for key in keys)}}}"


def bare(annotation: Any) -> Any:
    """The type without `Annotated` and without `None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    inner = get_args(annotation)
    if type(None) in inner:
        return bare(next(one for one in inner if one is not type(None)))
    return annotation


def annotation_at(schema: type[BaseModel], at: Location) -> Any:
    """The type that belongs at a location of `schema`; `Any` where it has none."""
    if at and at[-1] == "[key]":  # a key of a mapping, not the value under it
        return next(iter(get_args(bare(annotation_at(schema, at[:-2])))), Any)
    current: Any = schema
    for part in at:
        current = bare(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields.items()
            current = next((f.annotation for name, f in fields if part in (name, f.alias)), Any)
            continue
        origin, inner = get_origin(current), get_args(current)
        if not inner:
            continue
        within = isinstance(part, int) and origin is tuple and part < len(inner)
        current = inner[int(part)] if within else inner[-1]
    return current


def short(value: object) -> str:
    """`value` in at most 60 characters."""
    text = json.dumps(value) if isinstance(value, bool) or value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""What a sweep changes, as text: `KEY=VALUES` becomes a key and its numbers, factors or names, in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import floor, isfinite, log

from planner.errors import InputError
from planner.given import hardware_of
from planner.hardware import HardwareProfile
from planner.sweep_keys import Key, find_key

MOST_VALUES = 1000
"""Of one key: more is a typing mistake in a range."""
DIGITS = 12
"""Significant digits of a range's values: 0.1 + 0.2 is 0.3."""
SYNTAX = "Write values as 8,16,32, a range with its step as 8..64:8, or with its factor as 8..64*2"

Value = float | str
"""A number in the unit of its key, a factor, or a name."""


@dataclass(frozen=True)
class Axis:
    """One key and the values that it takes. `relative`: the values are factors of what is there."""

    key: Key
    values: tuple[Value, ...]
    relative: bool = False

    @property
    def unit(self) -> str:
        """Of the values; `x` for factors, empty for names and counts."""
        return "x" if self.relative else self.key.unit

    def said(self, value: Value) -> str:
        """A value as a person types it: 25, x0.5, opt-30b."""
        text = value if isinstance(value, str) else f"{value:.{DIGITS}g}"
        return f"x{text}" if self.relative else text


def read_axes(texts: Sequence[str], hardware: str | HardwareProfile | None) -> tuple[Axis, ...]:
    """The axes of every `--set`, the first varying slowest. `hardware`, or the first machine that is swept, says which
    numbers a profile has.

    InputError, naming the `--set`, for an unknown key, for values that cannot be read, and for two keys that would set
    the same thing.
    """
    machines = [text.partition("=")[2].partition(",")[0].strip() for text in texts if _name(text) == "hardware"]
    machine: str | HardwareProfile | None = hardware if hardware is not None else next(iter(machines), None)
    if machine is None:
        raise InputError("no hardware given", where="--hardware", cure="Give --hardware, or --set hardware=A,B")
    profile = hardware_of(machine)
    axes = tuple(_axis(text, profile) for text in texts)
    for one, other in combinations(axes, 2):
        if one.key.overlaps(other.key):
            same = one.key.name == other.key.name
            what = f"'{one.key.name}' is set twice" if same else f"it sets what '{one.key.name}' sets"
            cure = "Give all values in one --set" if same else "Keep one of the two"
            raise InputError(what, where=f"--set {other.key.name}", cure=cure)
    return axes


def _name(text: str) -> str:
    return text.partition("=")[0].strip()


def _axis(text: str, hardware: HardwareProfile) -> Axis:
    name = _name(text)
    if "=" not in text or not name:
        cure = "Write KEY=VALUES, like link.h2d=16,25,32,50"
        raise InputError(f"{text!r} is no key with values", where="--set", cure=cure)
    key, where = find_key(name, hardware), f"--set {name}"
    items = [item.strip() for item in text.partition("=")[2].split(",")]
    if not all(items):
        raise InputError("a value is missing", where=where, cure=SYNTAX)
    if key.kind == "name":
        return Axis(key, _each_once(items, where))
    relative = {item.startswith("x") for item in items}
    if len(relative) > 1:
        raise InputError("factors and values are mixed", where=where, cure="Give all with an x, or none")
    is_relative = relative.pop()
    _check_relative(key, is_relative, items[0], where)
    numbers = [number for item in items for number in _numbers(item.removeprefix("x"), where)]
    if len(numbers) > MOST_VALUES:
        raise InputError(f"more than {MOST_VALUES} values", where=where, cure="Give fewer, or a larger step")
    for number in numbers:
        if not is_relative:
            key.check(number, where)
        elif number <= 0:
            raise InputError(f"x{number:g} leaves nothing", where=where, cure="Give factors above 0")
    return Axis(key, _each_once(numbers, where), is_relative)


def _check_relative(key: Key, relative: bool, item: str, where: str) -> None:
    if key.kind == "factor" and not relative:
        cure = f"Write x{item} for {item} times as fast"
        raise InputError("this has no single value, it can only be scaled", where=where, cure=cure)
    if relative and not key.scalable:
        raise InputError("there is nothing to multiply here", where=where, cure="Give the values themselves")


def _each_once(values: Iterable[Value], where: str) -> tuple[Value, ...]:
    kept: dict[Value, None] = {}
    for value in values:
        if value in kept:
            said = value if isinstance(value, str) else f"{value:g}"
            raise InputError(f"{said} is given twice", where=where, cure="Give every value once")
        kept[value] = None
    return tuple(kept)


def _numbers(item: str, where: str) -> list[float]:
    """One number, or those of a range with both ends where its steps meet them."""
    low, dots, rest = item.partition("..")
    if not dots:
        return [_number(item, where)]
    sign = next((sign for sign in ":*" if sign in rest), None)
    if sign is None:
        raise InputError(f"the range {item} has no step", where=where, cure=SYNTAX)
    high, _, step = rest.partition(sign)
    return _range(_number(low, where), _number(high, where), sign, _number(step, where), where)


def _range(low: float, high: float, sign: str, step: float, where: str) -> list[float]:
    if high < low:
        raise InputError(f"a range runs up, not from {low:g} to {high:g}", where=where, cure="Swap its ends")
    if sign == "*" and low <= 0:
        raise InputError(f"a range with a factor begins above 0, not at {low:g}", where=where, cure=SYNTAX)
    if step <= (sign == "*"):
        what = f"a factor is above 1, not {step:g}" if sign == "*" else f"a step is above 0, not {step:g}"
        raise InputError(what, where=where, cure=SYNTAX)
    # Far below a step, far above what rounding leaves of a whole number of them.
    steps = (log(high / low, step) if sign == "*" else (high - low) / step) + 1e-9
    if steps >= MOST_VALUES:
        raise InputError(f"more than {MOST_VALUES} values", where=where, cure="Give fewer, or a larger step")
    count = floor(steps) + 1
    found = (low * step**i if sign == "*" else low + i * step for i in range(count))
    return [float(f"{value:.{DIGITS}g}") for value in found]


def _number(text: str, where: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not isfinite(found) or "_" in text:
        raise InputError(f"{text.strip()!r} is no number", where=where, cure=SYNTAX)
    return found

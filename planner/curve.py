"""A number with its provenance, and a table of achieved rate by size. Nobody else sees a raw point."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import date as Date
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from planner.errors import Mistake, Mistaken

T = TypeVar("T")
Kind = Literal["datasheet", "measured", "published", "derived", "assumed"]
"""`measured` here by `hybridserve profile`; `published` = measured by others, in the source cited."""

Positive = Annotated[float, Field(gt=0, lt=1e18, allow_inf_nan=False)]
Size = Annotated[float, Field(ge=1, lt=1e9, allow_inf_nan=False)]
"""Of a table: rows, tokens, requests or columns, so never a part of one."""
FIRST_DAY, LAST_DAY = Date(2000, 1, 1), Date(2100, 1, 1)


DATE_CURE = "Write a date as text in quotes, like '2026-11-23'"
PAIRS_CURE = "Write points as a list of [size, rate] pairs, like [[64, 4.9e+13], [512, 1.6e+14]]"


class Strict(BaseModel):
    """Frozen, no unknown keys, no coercion: `1e9` as text is a mistake, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Provenance(Strict):
    """Where a number comes from. A measured one must say when, how often and how far it scattered."""

    kind: Kind
    source: str = Field(min_length=1)
    date: str | None = None
    runs: int | None = Field(default=None, ge=1, lt=10**9)
    spread: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    """Relative: (third quartile - first quartile) / median of the runs."""

    @model_validator(mode="after")
    def _measured_is_documented(self) -> Provenance:
        # A mistaken one is given all the same: it is named elsewhere, and not lacking.
        lacking = [k for k in ("date", "runs", "spread") if getattr(self, k, "mistaken") is None]
        if self.kind == "measured" and lacking:
            cure = f"Add {', '.join(lacking)}, or use kind: published for what others measured"
            raise Mistaken(Mistake("", f"a measured number needs {', '.join(lacking)}", cure))
        return self

    @field_validator("source")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if value.isspace():
            raise Mistaken(Mistake("", "it is blank", "Say where the number is from"))
        return value

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                day = Date.fromisoformat(value)
            except ValueError:
                raise Mistaken(Mistake("", f"{value!r} is no day", DATE_CURE)) from None
            if not FIRST_DAY <= day < LAST_DAY:
                raise Mistaken(Mistake("", f"{value} is no day on which such a machine was measured", DATE_CURE))
        return value


class Quantity(Provenance):
    """One number in the SI unit that its key names."""

    value: Positive


class Count(Quantity):
    """A quantity that may be zero (a reserve that is not needed, a latency set to nothing)."""

    value: Annotated[float, Field(ge=0, lt=1e18, allow_inf_nan=False)]


class Rate(Quantity):
    """FLOP/s or bytes/s. Less than a thousand a second is a unit mistake, and no solver could handle it."""

    value: Annotated[float, Field(ge=1e3, lt=1e18, allow_inf_nan=False)]


class Seconds(Count):
    """A fixed cost; more than ten seconds of it is a unit mistake."""

    value: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


def between(x: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """The rate at size `x` between (size, rate) at `low` and `high`, if time is affine in size.

    Time per unit of work, 1 / rate, is then linear in 1 / size: a fixed cost, and one for each unit. Exact for every
    operation of that kind, and never outside the two rates.
    """
    (x0, y0), (x1, y1) = low, high
    share = (1 / x0 - 1 / x) / (1 / x0 - 1 / x1)
    return 1 / ((1 - share) / y0 + share / y1)


def triples(values: Sequence[T]) -> Iterator[tuple[T, T, T]]:
    """Each value with both of its neighbours, in order."""
    return zip(values, values[1:], values[2:], strict=False)


class Points(Strict):
    """Achieved rate by size: [[size, rate], ...]. Between points time is affine in size, beyond them rates are held."""

    points: list[tuple[Size, Annotated[float, Field(ge=1e3, lt=1e18, allow_inf_nan=False)]]] = Field(
        min_length=1, strict=False
    )

    @field_validator("points", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, list):
            raise Mistaken(Mistake("", f"{str(value)[:60]} is no list of [size, rate] pairs", PAIRS_CURE))
        wrong = [found for i, point in enumerate(value) for found in _wrong_in(point, str(i))]
        if wrong:
            raise Mistaken(*wrong)
        return [tuple(map(_as_float, point)) for point in value]

    @field_validator("points")
    @classmethod
    def _ascending(cls, value: list[tuple[float, float]]) -> list[tuple[float, float]]:
        late = next((b[0] for a, b in pairwise(value) if a[0] >= b[0]), None)
        if late is not None:
            what = f"sizes must ascend, each once: {late:g} comes too late"
            raise Mistaken(Mistake("", what, "Sort the points by size, and keep one for each"))
        return value

    def at(self, size: float) -> float:
        """The rate at `size`, in the unit of the key."""
        points = self.points
        if size <= points[0][0]:
            return points[0][1]
        if size >= points[-1][0]:
            return points[-1][1]
        i = bisect_left(points, (size, 0.0))
        return points[i][1] if points[i][0] == size else between(size, points[i - 1], points[i])

    @property
    def left_out(self) -> list[float]:
        """Relative error at each inner point if it were not there: how well the table is interpolated."""
        return [between(x, a, b) / y - 1 for a, (x, y), b in triples(self.points)]

    def covers(self, size: float) -> bool:
        """False where `at` holds an end value, so that a prediction can say it extrapolates."""
        return self.points[0][0] <= size <= self.points[-1][0]


def _as_float(x: object) -> object:
    """A whole number as a float; what no float can hold is left, and refused as any number out of range."""
    return float(x) if isinstance(x, int) and not isinstance(x, bool) and abs(x) < 1e300 else x


def _wrong_in(point: object, key: str) -> list[Mistake]:
    """What keeps one point from being a pair of numbers. Their size is checked after."""
    if not isinstance(point, list | tuple) or len(point) != 2:
        return [Mistake(key, f"{str(point)[:60]} is not one of the [size, rate] pairs", PAIRS_CURE)]
    return [
        Mistake(f"{key}.{i}", f"{x!r} is text, not a number", "YAML needs a dot and a signed exponent, like 1.0e+9")
        for i, x in enumerate(point) if isinstance(x, str)
    ]  # fmt: skip


class Slice(Points):
    """The table of a surface at one value of its second size."""

    second: Size


class Surface(Provenance):
    """Achieved rate by two sizes: one table for each value of the second one, in ascending order.

    Between tables time is affine in the second size too, beyond them the rate is held. A single table serves where
    only one was ever measured.
    """

    slices: list[Slice] = Field(min_length=1)

    @field_validator("slices")
    @classmethod
    def _in_order(cls, value: list[Slice]) -> list[Slice]:
        if any(a.second >= b.second for a, b in pairwise(value)):
            cure = "Sort the slices by 'second', and keep one for each"
            raise Mistaken(Mistake("", "the slices must ascend in 'second', each value once", cure))
        return value

    def at(self, size: float, second: float) -> float:
        """The rate at (size, second), in the unit of the key."""
        slices = self.slices
        if second <= slices[0].second:
            return slices[0].at(size)
        for low, high in pairwise(slices):
            if second <= high.second:
                return between(second, (low.second, low.at(size)), (high.second, high.at(size)))
        return slices[-1].at(size)

    @property
    def sizes(self) -> list[float]:
        """Every first size that some table gives a rate for."""
        return sorted({size for one in self.slices for size, _ in one.points})

    @property
    def best(self) -> float:
        """The highest rate of all."""
        return max(rate for one in self.slices for _, rate in one.points)

    @property
    def left_out(self) -> list[float]:
        """Relative error at each point if it, or its whole table, were not there."""
        found = [error for one in self.slices for error in one.left_out]
        for low, middle, high in triples(self.slices):
            for size, rate in middle.points:
                if low.covers(size) and high.covers(size):
                    near = (low.second, low.at(size)), (high.second, high.at(size))
                    found.append(between(middle.second, *near) / rate - 1)
        return found

    def best_within(self, second: float, size: float | None = None) -> float:
        """The highest rate at any second size up to `second`, at `size` or at any: what bounds may count on."""
        return max(self._at_any(one, second) for one in (self.sizes if size is None else [size]))

    def best_up_to(self, size: float, second: float) -> float:
        """The highest rate at any size up to `size` and any second size up to `second`: rates between two points lie
        between theirs."""
        return max(self._at_any(one, second) for one in [*(known for known in self.sizes if known < size), size])

    def _at_any(self, size: float, second: float) -> float:
        return max(self.at(size, at) for at in [*(one.second for one in self.slices if one.second < second), second])

    def covers(self, size: float) -> bool:
        """False where `at` holds an end value in every table."""
        return self.sizes[0] <= size <= self.sizes[-1]

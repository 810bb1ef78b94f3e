"""The highest rates that a surface allows to anything up to given sizes: what bounds count on."""

from __future__ import annotations

import numpy as np

from planner.curve import Surface
from planner.split_problem import Floats

RATIO = 1.1
"""Between the sizes that are told apart: limits are rounded up to the next."""


class BestRates:
    """Of one surface, for sizes up to `size` and second sizes up to `second`."""

    def __init__(self, surface: Surface, size: float, second: float) -> None:
        self._sizes = _grid(size, surface.sizes)
        self._seconds = _grid(second, [one.second for one in surface.slices])
        # Time is affine in 1 / size between points, and held beyond them.
        by_slice = np.array([_interpolated(self._sizes, *map(np.array, zip(*one.points, strict=True)))
                             for one in surface.slices])  # fmt: skip
        knots = np.array([one.second for one in surface.slices])
        rates = np.array([_interpolated(self._seconds, knots, column) for column in by_slice.T])
        self._best = np.maximum.accumulate(np.maximum.accumulate(rates, axis=0), axis=1)
        """[sizes, second sizes] the highest rate up to each: between grid points rates lie between theirs."""

    def up_to(self, size: float, second: float, product: float) -> float:
        """The highest rate at any size up to `size` and second size up to `second` whose product is at most that."""
        begins = self._seconds[: max(int(np.searchsorted(self._seconds, second)), 1)]
        ends = np.append(begins[1:], second)
        widest = np.minimum(size, product / begins)
        rows, columns = (
            np.minimum(np.searchsorted(grid, limits * (1 - 1e-12)), len(grid) - 1)
            for grid, limits in ((self._sizes, widest), (self._seconds, ends))
        )
        return float(self._best[rows, columns].max())


def _grid(most: float, knots: list[float]) -> Floats:
    steps = RATIO ** np.arange(int(np.ceil(np.log(max(most, 1.0)) / np.log(RATIO))) + 1)
    return np.unique([*steps, *knots])


def _interpolated(at: Floats, sizes: Floats, rates: Floats) -> Floats:
    """Rates at some sizes, of points in ascending order."""
    found: Floats = 1 / np.interp(1 / at, 1 / sizes[::-1], 1 / rates[::-1])
    return found

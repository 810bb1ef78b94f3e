"""How streams slow each other while they run together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

from planner.link import Link

Speeds = tuple[float, float, float]
"""Of (h2d, compute, d2h), relative to running alone."""


@dataclass(frozen=True)
class Contention:
    """Speed of every stream by which of them are busy, from the rates that the profile gives for both together."""

    link: Link

    def speeds(self, h2d: bool, compute: bool, d2h: bool) -> Speeds:
        """Speeds while exactly the named streams are busy."""
        link = self.link
        beside_compute = min(1.0, link.during_compute.value) if compute else 1.0
        return (
            (link.beside_d2h if d2h else 1.0) * beside_compute,
            1.0 - (link.compute_lost_to_h2d if h2d else 0.0) - (link.compute_lost_to_d2h if d2h else 0.0),
            (link.beside_h2d if h2d else 1.0) * beside_compute,
        )

    @cached_property
    def table(self) -> dict[tuple[bool, bool, bool], Speeds]:
        """All eight cases."""
        either = (False, True)
        cases = product(either, either, either)
        return {(up, compute, down): self.speeds(up, compute, down) for up, compute, down in cases}

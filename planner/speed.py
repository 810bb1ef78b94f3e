"""How fast a machine is now, against what its profile says."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from planner.hardware import HardwareProfile
from planner.tables import new_table, seconds

TOLERANCE = 0.10
"""A profile describes a machine if its kernels take as long as it says within this, in the median of each kind."""
SCATTERED = 0.25
"""Spread of the readings beyond which nothing can be said."""


@dataclass(frozen=True)
class Reading:
    """One kernel: seconds as the profile has it and as measured now."""

    name: str
    kind: str
    """`gemm`: bound by arithmetic; `memory`: by caches and memory."""
    profile_s: float
    measured_s: float
    spread: float

    @property
    def slowdown(self) -> float:
        """Measured over profile: 1.1 is ten percent slower than the profile says."""
        return self.measured_s / self.profile_s


@dataclass(frozen=True)
class Speed:
    """How many times longer than the profile says kernels take now."""

    gemm: float
    memory: float

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Speed:
        """Median of each kind."""
        kinds = {kind: [r.slowdown for r in readings if r.kind == kind] for kind in ("gemm", "memory")}
        return cls(statistics.median(kinds["gemm"]), statistics.median(kinds["memory"]))

    @classmethod
    def typical(cls, speeds: Iterable[Speed]) -> Speed:
        """Median of several."""
        found = list(speeds)
        return cls(statistics.median(s.gemm for s in found), statistics.median(s.memory for s in found))

    @property
    def off(self) -> float:
        """How far the profile is from the machine as it is now, relative: the worse of both kinds."""
        return max(abs(self.gemm - 1), abs(self.memory - 1))

    @property
    def describes(self) -> bool:
        """True when the profile still holds within `TOLERANCE`."""
        return self.off <= TOLERANCE

    def applied(self, hardware: HardwareProfile) -> HardwareProfile:
        """`hardware` as fast as it is now."""
        return hardware.at_speed(self.gemm, self.memory)


@dataclass(frozen=True)
class Check:
    """A profile laid beside the machine as it is now."""

    hardware: HardwareProfile
    readings: Sequence[Reading]

    @property
    def speed(self) -> Speed:
        return Speed.of(self.readings)

    @property
    def scatter(self) -> float:
        """Median spread of the readings: how noisy the machine was meanwhile."""
        return statistics.median(reading.spread for reading in self.readings)

    @property
    def tells(self) -> bool:
        """False where readings scatter so much that a machine as described could look like another, or the reverse."""
        return self.scatter <= SCATTERED

    @property
    def describes(self) -> bool:
        """True when the profile holds as far as can be told."""
        return self.tells and self.speed.describes

    @property
    def verdict(self) -> str:
        """One sentence, and what to do."""
        speed = self.speed
        found = f"products take {speed.gemm:.2f} x, other kernels {speed.memory:.2f} x as long as it says"
        if not self.tells:
            return f"Too noisy to tell: readings scatter by {self.scatter:.0%}. {found[:1].upper()}{found[1:]}"
        if speed.describes:
            return f"The profile describes this machine: {found}, within {TOLERANCE:.0%}"
        return f"The profile does not describe this machine now: {found}. Measure again: hybridserve profile"

    def result(self) -> dict[str, Any]:
        """As `profile --check --json` prints it."""
        return {
            "hardware": self.hardware.id,
            "describes": self.describes,
            "too_noisy": not self.tells,
            "gemm_slowdown": self.speed.gemm,
            "memory_slowdown": self.speed.memory,
            "scatter": self.scatter,
            "readings": [
                {"name": r.name, "profile_s": r.profile_s, "measured_s": r.measured_s, "slowdown": r.slowdown}
                for r in self.readings
            ],
        }

    def report(self) -> RenderableType:
        """For people."""
        table = new_table(f"{self.hardware.id}: kernels now", "kernel", "profile", "now", "now / profile", "spread")
        for r in self.readings:
            now, says = seconds(r.measured_s), seconds(r.profile_s)
            table.add_row(r.name, says, now, f"{r.slowdown:.2f} x", f"{r.spread:.0%}")
        return Group(table, Text(self.verdict))

"""Which numbers of a profile are most worth measuring: how far each, within its doubt, moves a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from planner.curve import Provenance, Quantity
from planner.hardware import HardwareProfile
from planner.reference_job import Job, ShortJob, reference

FACTORS = {"assumed": (0.5, 2.0), "derived": (0.8, 1.2), "published": (0.9, 1.1)}
"""Doubt by kind: a number lies between these multiples of its value. Measured and datasheet ones are not doubted."""
EFFECTS = {
    "link.during_compute": (0.7, 1.0),
    "gpu.achieved.engine_slowdown.prefill": (1.0, 1.3),
    "gpu.achieved.engine_slowdown.rebuild": (1.0, 1.3),
    "gpu.achieved.engine_slowdown.forward": (1.0, 1.3),
    "gpu.achieved.attention_group_cost": (0.0, 0.1),
}
"""Doubt about an assumed effect. Most profiles assume that there is none, and no multiple of that says anything."""
MOST_COMPUTE_LOST = 0.1
"""The same for `link.compute_s_lost_per_byte`: up to this share of compute while the link is busy."""
LEAST = 5e-4
"""A number that moves the total by less than this fraction is not worth measuring."""


class Doubt(NamedTuple):
    """One number, and by what fraction the predicted total changes with it at either end of its range."""

    key: str
    kind: str
    low_fraction: float
    high_fraction: float

    @property
    def most(self) -> float:
        """The larger change, either way."""
        return max(abs(self.low_fraction), abs(self.high_fraction))


@dataclass(frozen=True)
class Worth:
    """Doubts by the size of their effect; no job and no doubts where the machine holds no reference job."""

    job: Job | None
    doubts: tuple[Doubt, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Keys `reference_job` and `worth_measuring`."""
        job = self.job._asdict() if self.job else None
        return {"reference_job": job, "worth_measuring": [doubt._asdict() for doubt in self.doubts]}


def worth_measuring(hardware: HardwareProfile) -> Worth:
    """Rank every number of `hardware` that nobody measured here or put into a datasheet.

    The reference job is planned once; the same plan is then simulated with each number at either end of its range.
    """
    short = reference(hardware)
    if short is None:
        return Worth(None)
    base_s = short.total_s(hardware)
    doubts = (_doubt(hardware, short, base_s, key, node) for key, node in _doubted(hardware, short.model.dtype))
    return Worth(short.job, tuple(sorted((d for d in doubts if d.most >= LEAST), key=lambda d: -d.most)))


def _doubt(hardware: HardwareProfile, short: ShortJob, base_s: float, key: str, node: Provenance) -> Doubt:
    low, high = (short.total_s(one) / base_s - 1 for one in ends(hardware, key, node))
    return Doubt(key, node.kind, low, high)


def ends(hardware: HardwareProfile, key: str, node: Provenance) -> tuple[HardwareProfile, HardwareProfile]:
    """`hardware` with the number or table at `key` at the low and at the high end of its range.

    No rate exceeds the datasheet's: that is what it is for.
    """
    path, peak = key.split("."), _peak(hardware, key)
    if isinstance(node, Quantity):
        values = _range(hardware, key, node)
        capped = (min(value, max(peak, node.value)) for value in values)
        changes = [_setter({"value": value}) for value in capped]
    else:
        changes = [_scaler(factor, peak) for factor in FACTORS[node.kind]]
    low, high = (_replaced(hardware, path, change) for change in changes)
    return low, high


def _range(hardware: HardwareProfile, key: str, node: Quantity) -> tuple[float, float]:
    effect = EFFECTS.get(key)
    if key == "link.compute_s_lost_per_byte":
        effect = (0.0, MOST_COMPUTE_LOST / hardware.link.h2d_bytes_per_s.value)
    if effect and node.kind == "assumed":
        return min(effect[0], node.value), max(effect[1], node.value)
    low, high = FACTORS[node.kind]
    return low * node.value, high * node.value


def _peak(hardware: HardwareProfile, key: str) -> float:
    """The datasheet's value for a rate of the GPU; infinite where it says nothing."""
    sheet = hardware.gpu.datasheet
    peak = None
    if key.startswith("gpu.achieved.") and "bytes_per_s" in key:
        peak = sheet.memory_bytes_per_s
    elif "flops_by_rows." in key:
        peak = {str(dtype): one for dtype, one in sheet.flops.items()}.get(key.rpartition(".")[2])
    return peak.value if peak else float("inf")


# ---- numbers of a profile by their keys ------------------------------------------------------------


def _doubted(hardware: HardwareProfile, dtype: str) -> Iterator[tuple[str, Provenance]]:
    """Rates and times that a prediction in `dtype` may read; memory sizes move no time of a plan that is made."""
    for block, node in (("gpu.achieved", hardware.gpu.achieved), ("link", hardware.link)):
        for key, number in _numbers(node, block):
            other = "flops_by_rows." in key and not key.endswith(f".{dtype}")
            # The CPU device's link is paced: its rate is set, not assumed for want of a measurement.
            paced = hardware.gpu.device == "cpu" and key.startswith("link.") and key.endswith("_bytes_per_s")
            if number.kind in FACTORS and not other and not (paced and number.kind == "assumed"):
                yield key, number


def _numbers(node: Any, path: str) -> Iterator[tuple[str, Provenance]]:
    if isinstance(node, Provenance):
        yield path, node
    elif isinstance(node, BaseModel | dict):
        for name, below in node.items() if isinstance(node, dict) else dict(node).items():
            yield from _numbers(below, f"{path}.{name}")


def _replaced(node: Any, path: list[str], change: Callable[[Any], Any]) -> Any:
    """A copy of `node` with `change` made at `path`. Not checked again: a doubt may well contradict a neighbour."""
    head, rest = path[0], path[1:]
    below = node[head] if isinstance(node, dict) else getattr(node, head)
    new = _replaced(below, rest, change) if rest else change(below)
    return {**node, head: new} if isinstance(node, dict) else node.model_copy(update={head: new})


def _setter(update: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda node: node.model_copy(update=update)


def _scaler(factor: float, peak: float) -> Callable[[Any], Any]:
    """Multiplies every rate of a table, none beyond `peak`."""

    def points(node: Any) -> Any:
        scaled = [(size, min(rate * factor, max(rate, peak))) for size, rate in node.points]
        return node.model_copy(update={"points": scaled})

    return lambda table: table.model_copy(update={"slices": [points(one) for one in table.slices]})

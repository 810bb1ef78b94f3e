"""What the time of an operation is made of: products, attention, element-wise kernels, overhead.

The cost model adds up sums; here each of its parts carries its name through the same additions, so that the terms
of an operation are those of the cost model itself and not a second one beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from planner.costs import CostModel, OpCost
from planner.hardware import HardwareProfile
from planner.model import ModelSpec

TERMS = ("gemm", "attention", "elementwise", "overhead")
"""In the order in which reports list them. `overhead` is whatever is none of the others: launches and Python."""
_SAME = 1 + 1e-9


class Part(NamedTuple):
    """One term of an operation. A GEMM also says which product it is and what bounds it."""

    term: str
    name: str = ""
    bound: str = ""
    """`arithmetic` at the achieved rate, or `memory` traffic."""


Parts = tuple[tuple[Part, float], ...]
"""Seconds of each part, in the order of their first use."""


@dataclass(frozen=True, slots=True)
class NamedCost(OpCost):
    """A cost that knows its parts. Seconds that no part accounts for are overhead."""

    parts: Parts = ()

    def __add__(self, other: OpCost) -> NamedCost:
        return _named(OpCost.__add__(self, other), (*self.parts, *parts_of(other)))

    def __radd__(self, other: OpCost) -> NamedCost:
        return _named(OpCost.__add__(other, self), (*parts_of(other), *self.parts))

    def __mul__(self, slowdown: float) -> NamedCost:
        return _named(OpCost.__mul__(self, slowdown), ((part, s * slowdown) for part, s in self.parts))


def parts_of(cost: OpCost) -> Parts:
    """The parts of `cost` that have a name."""
    return cost.parts if isinstance(cost, NamedCost) else ()


def terms(cost: OpCost) -> dict[Part, float]:
    """Seconds by part; they sum to the seconds of `cost`."""
    found = dict(parts_of(cost))
    rest = cost.seconds - sum(found.values())
    # What is left of a sum of many floats is no overhead.
    return found | ({Part("overhead"): rest} if rest > 1e-12 * cost.seconds else {})


class TermCosts(CostModel):
    """The cost model, with named parts."""

    def __init__(self, hardware: HardwareProfile, model: ModelSpec) -> None:
        super().__init__(hardware, model)
        self._names = _gemm_names(model)

    def _decode_attention(self, requests: int, context: float) -> OpCost:
        return _as(super()._decode_attention(requests, context), Part("attention"))

    def prefill_attention(self, tokens: int, prompts: int = 1) -> OpCost:
        """As the cost model prices it."""
        return _as(super().prefill_attention(tokens, prompts), Part("attention"))

    def merge(self, parts: int) -> OpCost:
        """As the cost model prices it."""
        return _as(super().merge(parts), Part("attention"))

    def elementwise(self, elements: float) -> OpCost:
        """As the cost model prices it."""
        return _as(super().elementwise(elements), Part("elementwise"))

    def _gemm(self, rows: int, inner: int, columns: int) -> OpCost:
        cost = super()._gemm(rows, inner, columns)
        traffic_s = cost.memory_bytes / self.hardware.gpu.achieved.memory_bytes_per_s.value
        bound = "memory" if cost.seconds <= traffic_s * _SAME else "arithmetic"
        return _as(cost, Part("gemm", self._names.get((inner, columns), f"{inner} x {columns}"), bound))


def _as(cost: OpCost, part: Part) -> NamedCost:
    return _named(cost, ((part, cost.seconds),) if cost.seconds else ())


def _named(cost: OpCost, parts: Iterable[tuple[Part, float]]) -> NamedCost:
    summed: dict[Part, float] = {}
    for part, seconds in parts:
        summed[part] = summed.get(part, 0.0) + seconds
    return NamedCost(cost.seconds, cost.flops, cost.memory_bytes, tuple(summed.items()))


def _gemm_names(m: ModelSpec) -> dict[tuple[int, int], str]:
    """What people call the products, by the shape of their weights; of equal shapes the last one counts."""
    width = m.heads * m.head_dim
    return {
        (m.hidden, m.vocab): "head",
        (m.hidden, 2 * m.d_kv): "rebuild K and V",
        (m.hidden, m.ffn): "feed-forward up",
        (m.ffn, m.hidden): "feed-forward down",
        (width, m.hidden): "attention output",
        (m.hidden, width + 2 * m.d_kv): "Q, K and V",
    }

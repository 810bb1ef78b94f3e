"""One schedule run several times on a machine that is not always equally fast: what it takes undisturbed.

Disturbance by other users of a machine only ever adds time, in spells that are shorter than a run. So each stretch of a
run (a decode step, or one layer of one prefill pass) is judged by the lower quartile of its repeats, the same statistic
that a profile takes of its kernels, and a run by the sum of its stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from planner.timeline import Span, Timeline

Floats = npt.NDArray[np.float64]


def quiet(repeats: Floats) -> Floats:
    """[repeats, ...] to [...]: the lower quartile, a repeat that happened (rounded down to one)."""
    return np.percentile(repeats, 25, axis=0, method="lower")


@dataclass(frozen=True)
class Repeats:
    """Timelines of the same schedule."""

    runs: Sequence[Timeline]

    @cached_property
    def span_s(self) -> Floats:
        """[spans] undisturbed seconds of each operation."""
        return quiet(np.array([[span.end_s - span.start_s for span in run.spans] for run in self.runs]))

    def stretches(self, decode: bool) -> Floats:
        """[repeats, stretches] seconds between the ends of stretches; those of a phase sum to it."""
        found = []
        for run in self.runs:
            ends = run.step_ends_s
            cuts = ends if decode else [0.0, *_layer_ends(run.spans), ends[0]]
            found.append(np.diff(np.maximum.accumulate(np.array(cuts))))
        return np.array(found)

    @cached_property
    def prefill_s(self) -> float:
        return float(quiet(self.stretches(decode=False)).sum())

    @cached_property
    def decode_s(self) -> float:
        return float(quiet(self.stretches(decode=True)).sum())

    @property
    def decode_step_s(self) -> float:
        """Mean decode step; 0 when the job ends with prefill."""
        steps = self.runs[0].decode_steps
        return self.decode_s / steps if steps else 0.0

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s

    def kind_s(self) -> dict[str, float]:
        """Undisturbed seconds of all operations of one kind and phase, as `prefill.embed` or `decode.forward`."""
        found: dict[str, float] = {}
        for span, seconds in zip(self.runs[0].spans, self.span_s, strict=True):
            found[kind_of(span)] = found.get(kind_of(span), 0.0) + float(seconds)
        return found

    @property
    def disturbance(self) -> float:
        """How much longer the median run took than an undisturbed one, relative."""
        return float(np.median([run.total_s for run in self.runs])) / self.total_s - 1


def kind_of(span: Span) -> str:
    """The kind of a span with its phase."""
    return f"{'decode' if span.step else 'prefill'}.{span.kind}"


def _layer_ends(spans: Sequence[Span]) -> list[float]:
    """When compute finished each layer of each prefill pass but the last, in issue order."""
    prefill = [span for span in spans if span.kind == "prefill"]
    return [a.end_s for a, b in pairwise(prefill) if a.layer != b.layer]

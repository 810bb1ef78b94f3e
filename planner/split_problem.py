"""Data and solution of one split problem: which form every block takes and which layers stay on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.epochs import Demand, Epoch, total
from planner.forms import CacheForm
from planner.hardware import HardwareProfile
from planner.model import ModelSpec

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Identical mini-batches, taken together."""

    count: int
    demands: tuple[Demand, ...]
    """By lifetime: of requests that end with prefill, then of those that end in each epoch."""
    compute_s: Floats
    """[epochs] seconds of compute per step beside rebuilding, all layers and mini-batches of the bin."""
    rebuild_s_per_block: float
    """All layers."""
    link_s_per_block: float
    """Latency of cache transfers spread over the blocks that they carry, all layers."""
    largest: float
    """Blocks of its largest mini-batch in the end: what slots must hold."""
    call_s: Floats
    """[epochs] seconds per step of the attention calls that a further form takes, all layers."""
    peak: Floats
    """[epochs] the most blocks in any step over the mean."""
    rebuild_floors: tuple[tuple[float, float], ...] = ()
    """(seconds of each step, and more per block), all layers: what rebuilding takes at least where any block is kept as
    activations, since a product of few rows takes as long as one of some. None in the relaxation."""
    free_forms: int = 1
    """Forms whose calls are counted in `compute_s`: one in every mini-batch, which in the relaxation may differ."""

    @cached_property
    def demand(self) -> Demand:
        """Of all its requests."""
        return total(self.demands)

    @property
    def slot_share(self) -> float:
        """Of the bin's blocks, those of its largest mini-batch."""
        return self.largest / self.demand.final_blocks


@dataclass(frozen=True)
class PrefillSize:
    """Chunks and passes of one size."""

    nbytes: float
    """Of hidden state, workspace and store slots in prefill."""
    compute_s: float
    sweeps: int
    """Loads of all that streams."""


@dataclass(frozen=True)
class SplitProblem:
    """Data of one split problem. Bytes of memory, seconds of time."""

    model: ModelSpec
    hardware: HardwareProfile
    forms: tuple[CacheForm, ...]
    epochs: Sequence[Epoch]
    bins: tuple[Bin, ...]
    weight_slots: int
    cache_slots: int
    fixed_decode_bytes: float
    """Hidden state, workspace and store slots while decoding."""
    prefill: tuple[PrefillSize, ...]
    """Sizes of which one is chosen."""
    pieces_per_layer: int
    """Transfers that carry what streams of one layer, at least."""
    act_share: float | None = None
    """Forces this share of the blocks of every mini-batch to be ACT."""
    min_resident_layers: float = 0.0
    max_resident_layers: float | None = None
    head_start: int = 0
    """Slots whose weights may cross the link before the step that needs them, which the bound must not count in that
    step: what they hold beside the last layer, and what crosses while prefill chooses its tokens."""
    sample_s: float = 0.0
    """Of choosing the first tokens, after prefill's last layer."""
    least_parts: int | None = None
    """How many parts of every layer are resident and not of every layer more, where that is decided: slots hold the
    others."""
    gpu_margin_bytes: float = 0.0
    """GPU memory to leave for the rounding of blocks and of slots."""
    host_margin_bytes: float = 0.0
    """Host memory to leave for the rounding of blocks and of pinned slabs."""
    decided: bool = False
    """The mini-batches are decided: their requests that end in the same epoch hold the same mix of forms, as a plan
    deals them, and every form costs its calls until the end. The relaxation allows for anything else."""

    @cached_property
    def unit_s(self) -> float:
        """Seconds that count as 1 in the problem: about a step, since solvers take 1e-7 of anything for nothing."""
        steps = [epoch.steps for epoch in self.epochs]
        compute = self.least_prefill_s + sum(float(part.compute_s @ steps) for part in self.bins)
        return compute / max(sum(steps), 1)

    @property
    def least_prefill_s(self) -> float:
        """Compute of prefill, at least."""
        return min(size.compute_s for size in self.prefill)


@dataclass(frozen=True)
class Split:
    """A solution, in real numbers, and integers where they were asked for."""

    begun: dict[tuple[int, int, str, int], float]
    """Blocks by (bin, lifetime, form, epoch), those of ended requests included, in proportion to the others'."""
    final: dict[tuple[int, int, str], float]
    prefill: int
    """The number of the chosen size."""
    resident_layers: float
    """How many whole layers the resident weights come to: in whole parts where they are decided."""
    least_parts: int
    """How many parts of every layer are resident and not of every layer more."""
    objective_s: float
    bound_s: float
    """What the solver proved for this very problem."""

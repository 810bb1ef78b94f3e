"""The link of a hardware profile: two directions that slow each other, and compute, while they run together."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.curve import Count, Rate, Seconds, Strict
from planner.errors import Mistake, Mistaken
from planner.gpu import MAX_EFFICIENCY

MAX_COMPUTE_LOST = 0.45
"""Of compute's speed, by either direction: both together never stop it, whatever a profile says."""


class Share(Count):
    """A fraction of the whole; a hundredth is a unit mistake."""

    value: Annotated[float, Field(ge=0.01, le=MAX_EFFICIENCY, allow_inf_nan=False)]


class Link(Strict):
    """Host <-> GPU, from pinned memory unless the key says otherwise."""

    name: str = Field(min_length=1)
    h2d_bytes_per_s: Rate
    d2h_bytes_per_s: Rate
    h2d_during_d2h_bytes_per_s: Rate
    d2h_during_h2d_bytes_per_s: Rate
    pageable_h2d_bytes_per_s: Rate
    pageable_d2h_bytes_per_s: Rate
    latency_s: Seconds
    """Per transfer operation."""
    during_compute: Share
    """Rate while the GPU computes, relative to the rate while it idles."""
    compute_s_lost_per_byte: Seconds
    """Seconds that compute loses for every byte that crosses the link meanwhile, for want of memory bandwidth."""

    @model_validator(mode="after")
    def _h2d_not_faster_shared(self) -> Link:
        self._check("h2d_during_d2h_bytes_per_s", self.h2d_during_d2h_bytes_per_s, "h2d", self.h2d_bytes_per_s)
        return self

    @model_validator(mode="after")
    def _d2h_not_faster_shared(self) -> Link:
        self._check("d2h_during_h2d_bytes_per_s", self.d2h_during_h2d_bytes_per_s, "d2h", self.d2h_bytes_per_s)
        return self

    @staticmethod
    def _check(key: str, shared: Rate, way: str, alone: Rate) -> None:
        if shared.value > MAX_EFFICIENCY * alone.value:
            what = f"{shared.value:.4g} is faster than {way}_bytes_per_s alone, {alone.value:.4g}"
            cure = f"Give at most {way}_bytes_per_s; a profile that extends another inherits what it does not give"
            raise Mistaken(Mistake(key, what, cure))

    def h2d_time(self, nbytes: float) -> float:
        """Seconds for one transfer of `nbytes` to the GPU."""
        return self.latency_s.value + nbytes / self.h2d_bytes_per_s.value if nbytes else 0.0

    def d2h_time(self, nbytes: float) -> float:
        """Seconds for one transfer of `nbytes` to the host."""
        return self.latency_s.value + nbytes / self.d2h_bytes_per_s.value if nbytes else 0.0

    @property
    def beside_d2h(self) -> float:
        """Speed of transfers to the GPU while others go to the host, relative to alone; at most 1."""
        return min(1.0, self.h2d_during_d2h_bytes_per_s.value / self.h2d_bytes_per_s.value)

    @property
    def beside_h2d(self) -> float:
        """Speed of transfers to the host while others go to the GPU, relative to alone; at most 1."""
        return min(1.0, self.d2h_during_h2d_bytes_per_s.value / self.d2h_bytes_per_s.value)

    @property
    def compute_lost_to_h2d(self) -> float:
        """Share of compute's speed that a busy transfer to the GPU takes, at most MAX_COMPUTE_LOST."""
        return min(MAX_COMPUTE_LOST, self.compute_s_lost_per_byte.value * self.h2d_bytes_per_s.value)

    @property
    def compute_lost_to_d2h(self) -> float:
        """Share of compute's speed that a busy transfer to the host takes, at most MAX_COMPUTE_LOST."""
        return min(MAX_COMPUTE_LOST, self.compute_s_lost_per_byte.value * self.d2h_bytes_per_s.value)

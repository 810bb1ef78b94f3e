"""The published figures as data: `published.yaml`, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from planner.curve import Positive, Rate, Strict
from planner.files import read_yaml, validate

FIGURES = Path(__file__).parent / "published.yaml"
Unit = Literal["tokens/s", "saved", "times"]
"""`saved` is a fraction of the time, `times` a speed over another."""
System = Literal[
    "accelerate", "zero-inference", "zero-inference-cpu-attention", "flexgen", "flexgen-cpu-attention", "kvpr",
    "hybridserve-over-flexgen",
]  # fmt: skip
Count = Field(ge=1, le=10**6)


class Figure(Strict):
    """What was measured, and by whom."""

    value: Positive
    unit: Unit
    source: str = Field(min_length=1)


class Placement(Strict):
    """The policy of FlexGen that a setting states."""

    gpu_batch: int = Count
    batches: int = Count
    weights_on_gpu: float = Field(ge=0, le=1)
    overlap: bool


class Target(Strict):
    """How near the prediction must be: a factor either way, or an absolute difference."""

    within_factor: float | None = Field(default=None, gt=1, le=10)
    within_points: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> Target:
        if (self.within_factor is None) == (self.within_points is None):
            raise ValueError("give either within_factor or within_points")
        return self

    def met(self, predicted: float, published: float) -> bool:
        """Whether `predicted` is near enough."""
        if self.within_points is not None:
            return abs(predicted - published) <= self.within_points
        return max(predicted / published, published / predicted) <= (self.within_factor or 1)


class Row(Strict):
    """One published figure with its setting. What the source leaves out is said in `setting` or `caveat`."""

    id: str = Field(pattern=r"^[a-z0-9.-]+$")
    system: System
    hardware: str = Field(min_length=1)
    models: list[str] = Field(min_length=1)
    batch: int = Count
    prompt_len: int = Count
    gen_len: int = Field(ge=2, le=10**6)
    setting: str = Field(min_length=1)
    published: Figure
    policy: Placement | None = None
    host_memory_bytes_per_s: Rate | None = None
    target: Target | None = None
    caveat: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Row:
        on_cpu = self.system == "flexgen-cpu-attention"
        if on_cpu and (self.policy is None or self.host_memory_bytes_per_s is None):
            raise ValueError(f"{self.id}: {self.system} needs policy and host_memory_bytes_per_s")
        if self.policy is not None and self.policy.gpu_batch * self.policy.batches != self.batch:
            raise ValueError(f"{self.id}: gpu_batch x batches is not batch ({self.batch})")
        if self.target is None and self.caveat is None:
            raise ValueError(f"{self.id}: a row without a target says why, in caveat")
        return self


class Figures(Strict):
    """The whole file."""

    schema_version: Literal[1]
    rows: list[Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Figures:
        ids = [row.id for row in self.rows]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        if twice:
            raise ValueError(f"rows with the same id: {', '.join(twice)}")
        return self


def load_rows(path: Path = FIGURES) -> list[Row]:
    """Every row of the file; InputError names the first bad key."""
    return validate(Figures, read_yaml(path, "published figures"), str(path)).rows

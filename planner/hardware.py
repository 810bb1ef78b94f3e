"""Hardware profiles: one GPU, one link, one host. Each part answers `..._time(work)` and hides its curves."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import hwprofiles
from planner.curve import Count, Curve, Quantity, Strict
from planner.errors import InputError, nearest
from planner.files import content_hash, read_yaml, validate

Dtype = Literal["float16", "bfloat16", "float32"]
MAX_EFFICIENCY = 1.05
"""Achieved over datasheet beyond this is a cache effect or a unit mistake, never a fast machine."""


class Datasheet(Strict):
    """The vendor's peaks. Never used as a rate by the cost model: they only judge the achieved ones."""

    flops: dict[Dtype, Quantity] = Field(default_factory=dict)
    """Dense, with the accumulate type named in the source."""
    memory_bytes_per_s: Quantity | None = None


class GpuMemory(Strict):
    """GPU memory as a budget, not one number."""

    nominal_bytes: Quantity
    usable_bytes: Quantity
    context_reserve_bytes: Count
    """Taken by the driver context and library workspaces before the first tensor."""

    @model_validator(mode="after")
    def _nested(self) -> GpuMemory:
        if self.usable_bytes.value > self.nominal_bytes.value:
            raise ValueError("usable_bytes is larger than nominal_bytes (GB against GiB?)")
        if self.context_reserve_bytes.value >= self.usable_bytes.value:
            raise ValueError("context_reserve_bytes leaves nothing of usable_bytes")
        return self


class Achieved(Strict):
    """Rates as they were reached, each by the size that it depends on."""

    gemm_flops_by_rows: dict[Dtype, Curve] = Field(min_length=1)
    """FLOP/s of a dense product by the rows of its left operand."""
    prefill_attention_flops_by_tokens: Curve
    """FLOP/s of causal attention (half the square counted) by tokens of one prompt."""
    decode_attention_bytes_per_s_by_tokens: Curve
    """K and V bytes read per second by cached tokens attended in one call."""
    memory_bytes_per_s: Quantity
    """Device memory, bytes read plus bytes written per second, by a copy far larger than the caches."""
    op_overhead_s: Count
    """What one operation of the engine costs beside its arithmetic (launches, Python)."""
    forward_overhead_s: Count
    """The same for an operation that runs a whole layer."""
    decode_slowdown: Quantity
    """How many times longer decode kernels take inside the engine, beside a busy link, than alone."""


class Gpu(Strict):
    name: str = Field(min_length=1)
    device: Literal["cuda", "cpu"]
    """`cpu`: an arena of host memory stands in for the GPU, and the link is paced."""
    datasheet: Datasheet
    memory: GpuMemory
    achieved: Achieved

    @model_validator(mode="after")
    def _physical(self) -> Gpu:
        for dtype, curve in self.achieved.gemm_flops_by_rows.items():
            peak = self.datasheet.flops.get(dtype)
            self._check(f"gemm_flops_by_rows.{dtype}", max(rate for _, rate in curve.points), peak)
        self._check("memory_bytes_per_s", self.achieved.memory_bytes_per_s.value, self.datasheet.memory_bytes_per_s)
        return self

    @staticmethod
    def _check(key: str, achieved: float, peak: Quantity | None) -> None:
        if peak is not None and achieved > MAX_EFFICIENCY * peak.value:
            raise ValueError(
                f"achieved.{key} reaches {achieved:.4g}, {achieved / peak.value:.0%} of the datasheet's "
                f"{peak.value:.4g}: a cache effect, a wrong unit or another accumulate type"
            )

    @property
    def budget_bytes(self) -> int:
        """What a plan may use: usable less the context reserve."""
        return int(self.memory.usable_bytes.value - self.memory.context_reserve_bytes.value)

    def gemm_curve(self, dtype: str) -> Curve:
        """The curve of `dtype`; InputError when this profile has none."""
        curves: dict[str, Curve] = {str(k): v for k, v in self.achieved.gemm_flops_by_rows.items()}
        if dtype not in curves:
            raise InputError(
                f"this profile has no GEMM rate for {dtype}",
                where=f"{self.name}: gpu.achieved.gemm_flops_by_rows",
                cure=f"Profile it, or choose a dtype it has: {', '.join(curves)}",
            )
        return curves[dtype]

    def gemm_time(self, rows: float, inner: int, columns: int, dtype: str, element_bytes: int) -> float:
        """Seconds for [rows, inner] x [inner, columns]: the slower of arithmetic and memory traffic."""
        if rows <= 0:
            return 0.0
        traffic = element_bytes * (inner * columns + rows * (inner + columns))
        return max(2.0 * rows * inner * columns / self.gemm_curve(dtype).at(rows), self.stream_time(traffic))

    def stream_time(self, traffic_bytes: float) -> float:
        """Seconds to move `traffic_bytes` (read plus written) through device memory."""
        return traffic_bytes / self.achieved.memory_bytes_per_s.value

    def decode_attention_time(self, kv_bytes: float, tokens: float) -> float:
        """Seconds to attend one new token per request to `tokens` cached ones, `kv_bytes` in all."""
        return kv_bytes / self.achieved.decode_attention_bytes_per_s_by_tokens.at(tokens)

    def prefill_attention_time(self, flops: float, tokens: float) -> float:
        """Seconds for causal attention over prompts of `tokens`; `flops` counts half the square."""
        return flops / self.achieved.prefill_attention_flops_by_tokens.at(tokens)


class Link(Strict):
    """Host <-> GPU, from pinned memory unless the key says otherwise."""

    name: str = Field(min_length=1)
    h2d_bytes_per_s: Quantity
    d2h_bytes_per_s: Quantity
    h2d_during_d2h_bytes_per_s: Quantity
    d2h_during_h2d_bytes_per_s: Quantity
    pageable_h2d_bytes_per_s: Quantity
    pageable_d2h_bytes_per_s: Quantity
    latency_s: Count
    """Per transfer operation."""

    @model_validator(mode="after")
    def _ordered(self) -> Link:
        for alone in ("h2d", "d2h"):
            other = "d2h" if alone == "h2d" else "h2d"
            shared = f"{alone}_during_{other}_bytes_per_s"
            beside, by_itself = getattr(self, shared).value, getattr(self, f"{alone}_bytes_per_s").value
            if beside > MAX_EFFICIENCY * by_itself:
                raise ValueError(
                    f"{shared} ({beside:.4g}) is faster than {alone}_bytes_per_s alone ({by_itself:.4g}); "
                    "a profile that extends another inherits what it does not give"
                )
        return self

    def h2d_time(self, nbytes: float) -> float:
        """Seconds for one transfer of `nbytes` to the GPU."""
        return self.latency_s.value + nbytes / self.h2d_bytes_per_s.value if nbytes else 0.0

    def d2h_time(self, nbytes: float) -> float:
        """Seconds for one transfer of `nbytes` to the host."""
        return self.latency_s.value + nbytes / self.d2h_bytes_per_s.value if nbytes else 0.0


class Host(Strict):
    name: str = Field(min_length=1)
    total_bytes: Quantity
    reserve_bytes: Count
    """Left to the operating system and everything that is not this program's slabs."""
    pin_rounding: Literal["exact", "power_of_two"]
    """How pinned allocations are charged: the runtime registers exact slabs; a caching allocator does not."""

    @model_validator(mode="after")
    def _nested(self) -> Host:
        if self.reserve_bytes.value >= self.total_bytes.value:
            raise ValueError("reserve_bytes leaves nothing of total_bytes")
        return self

    @property
    def budget_bytes(self) -> int:
        return int(self.total_bytes.value - self.reserve_bytes.value)


class HardwareProfile(Strict):
    """One machine, as data. `hybridserve profile` writes one; `hwprofiles/` ships some."""

    schema_version: Literal[1]
    id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    description: str
    scale_model_of: str | None = None
    """Set when the link is slowed so that ratios, not speeds, are those of another machine."""
    machine: dict[str, str] = Field(default_factory=dict)
    gpu: Gpu
    link: Link
    host: Host

    @cached_property
    def content_hash(self) -> str:
        return content_hash(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def with_values(self, **changes: float) -> HardwareProfile:
        """A copy with numbers replaced by dotted path, e.g. `**{"link.h2d_bytes_per_s": 3.2e10}`.

        InputError when a path names no single number.
        """
        data = self.to_plain()
        for path, value in changes.items():
            node = data
            *parents, leaf = path.split(".")
            for part in parents:
                below = node.get(part)
                node = below if isinstance(below, dict) else {}
            if not isinstance(node.get(leaf), dict) or "value" not in node[leaf]:
                cure = nearest(leaf, node or data)
                raise InputError("no such number in a profile", where=path, cure=cure)
            node[leaf] = {"value": float(value), "kind": "assumed", "source": "set by the caller"}
        return validate(HardwareProfile, data, self.id)


def load_hardware(name_or_file: str) -> HardwareProfile:
    """A shipped profile by name, or one from a YAML file; InputError when it is neither or malformed."""
    path = Path(name_or_file)
    known = hwprofiles.names()
    if name_or_file in known:
        path = hwprofiles.path_of(name_or_file)
    elif path.suffix not in (".yaml", ".yml") and not _exists(path):
        cure = nearest(name_or_file, known, "give a .yaml file")
        raise InputError(f"unknown hardware '{name_or_file}'", where="hardware", cure=cure)
    return validate(HardwareProfile, _resolved(path, depth=0), str(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or not ours to look into
        return False


def _resolved(path: Path, depth: int) -> dict[str, Any]:
    """The YAML at `path`, laid over the shipped profile that its `extends` names, if any."""
    data = read_yaml(path, "hardware profile")
    base = data.pop("extends", None)
    if base is None:
        return data
    if depth > 3 or base not in hwprofiles.names():
        raise InputError(
            f"extends names no shipped profile: {base!r}",
            where=f"{path}: extends",
            cure=nearest(str(base), hwprofiles.names()),
        )
    return _overlay(_resolved(hwprofiles.path_of(base), depth + 1), data)


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and "value" not in value and "points" not in value:
            merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged

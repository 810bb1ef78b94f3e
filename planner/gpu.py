"""The GPU of a hardware profile. It answers `..._time(work)` and hides its tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from planner.curve import Count, Quantity, Rate, Seconds, Strict, Surface
from planner.errors import InputError, Mistake, Mistaken
from planner.model import ELEMENT_BYTES
from planner.model_config import Dtype

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
    def _within_nominal(self) -> GpuMemory:
        usable, nominal = self.usable_bytes.value, self.nominal_bytes.value
        if usable > nominal:
            what = f"{usable:.6g} is larger than nominal_bytes, {nominal:.6g} (GB against GiB?)"
            raise Mistaken(Mistake("usable_bytes", what, "Give at most nominal_bytes"))
        return self

    @model_validator(mode="after")
    def _reserve_within_usable(self) -> GpuMemory:
        reserve, usable = self.context_reserve_bytes.value, self.usable_bytes.value
        if reserve >= usable:
            what = f"{reserve:.6g} leaves nothing of usable_bytes, {usable:.6g}"
            raise Mistaken(Mistake("context_reserve_bytes", what, "Give less than usable_bytes"))
        return self


class Slowdown(Quantity):
    """How many times longer; a tenth or a hundred times is another machine."""

    value: Annotated[float, Field(ge=0.1, le=100, allow_inf_nan=False)]


class GroupCost(Count):
    """Of one head, relative to another."""

    value: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


MOST_COLUMNS = 1e6
"""Of a product that anybody times."""


class EngineSlowdown(Strict):
    """How many times longer kernels take inside the engine than one by one, by the operation that they are part of.

    What is left when contention with the link is counted apart: the threads of the engine, and caches that others use.
    """

    embed: Slowdown
    prefill: Slowdown
    rebuild: Slowdown
    forward: Slowdown
    sample: Slowdown


class Achieved(Strict):
    """Rates as they were reached, each by the sizes that it depends on."""

    gemm_flops_by_rows: dict[Dtype, Surface] = Field(min_length=1)
    """FLOP/s of a dense product by the rows of its left operand; second size: the inner dimension."""
    gemm_columns: Quantity | None = None
    """Columns of the products in that table; None where their number makes no difference, or is not known."""
    gemm_input_bytes_per_s: Rate | None = None
    """Bytes of the left operand per second of a product's time that it takes whatever its columns are."""
    prefill_attention_flops_by_tokens: Surface
    """FLOP/s of causal attention (half the square counted) by tokens of a prompt; second size: prompts in the call."""
    decode_attention_bytes_per_s_by_context: Surface
    """K and V bytes read per second by cached tokens of one request; second size: requests in the call."""
    attention_group_cost: GroupCost
    """Extra time of decode attention for each further query head that shares a K/V head, relative to the first."""
    merge_bytes_per_s: Rate
    """Bytes of attention output merged per second: one part per attention call, and one for the new token itself."""
    memory_bytes_per_s: Rate
    """Device memory, bytes read plus bytes written per second, by a copy far larger than the caches."""
    elementwise_bytes_per_s: Rate
    """The same for norms, residuals and activations as a layer runs them."""
    gather_bytes_per_s: Rate
    """The same for the look-up of embeddings."""
    op_overhead_s: Seconds
    """What one small operation of the engine costs beside its arithmetic (launches, Python)."""
    forward_overhead_s: Seconds
    """The same for an operation that runs a whole layer, with one attention call."""
    attention_call_s: Seconds
    """What each further attention call of a layer costs beside its arithmetic."""
    attention_group_s: Seconds
    """What each further group of alike requests costs beside that, where calls take only equal requests: its new
    tokens' own attention, merge and copies."""
    engine_slowdown: EngineSlowdown

    @model_validator(mode="after")
    def _columns_and_input(self) -> Achieved:
        if (self.gemm_columns is None) != (self.gemm_input_bytes_per_s is None):
            there, missing = "gemm_columns", "gemm_input_bytes_per_s"
            if self.gemm_columns is None:
                there, missing = missing, there
            raise Mistaken(Mistake(missing, f"is missing beside {there}", "Give both, or neither"))
        if self.gemm_columns and self.gemm_input_bytes_per_s:
            columns, read = self.gemm_columns.value, self.gemm_input_bytes_per_s.value
            for dtype, table in self.gemm_flops_by_rows.items():
                if ELEMENT_BYTES[dtype] / read > 2 * columns / table.best or columns > MOST_COLUMNS:
                    what = f"{read:.4g} bytes/s beside {columns:.4g} columns leave no time for a product in {dtype}"
                    cure = "Columns are those of the products timed, thousands; correct one of the two"
                    raise Mistaken(Mistake("gemm_input_bytes_per_s", what, cure))
        return self

    def shared_attention(self, group: int) -> float:
        """How many times longer decode attention takes when `group` query heads share each K/V head."""
        return 1 + (group - 1) * self.attention_group_cost.value


def _beyond(key: str, achieved: float, peak: Quantity | None) -> Mistake | None:
    """The mistake of an achieved rate that no such machine can have."""
    if peak is None or achieved <= MAX_EFFICIENCY * peak.value:
        return None
    what = f"reaches {achieved:.4g}, {achieved / peak.value:.0%} of the datasheet's {peak.value:.4g}"
    cure = "Look for a cache effect, a wrong unit or another accumulate type, and correct one of the two"
    return Mistake(f"achieved.{key}", what, cure)


class Gpu(Strict):
    name: str = Field(min_length=1)
    device: Literal["cuda", "cpu"]
    """`cpu`: an arena of host memory stands in for the GPU, and the link is paced."""
    datasheet: Datasheet
    memory: GpuMemory
    achieved: Achieved

    @model_validator(mode="after")
    def _possible_products(self) -> Gpu:
        tables, peaks = self.achieved.gemm_flops_by_rows, self.datasheet.flops
        found = [_beyond(f"gemm_flops_by_rows.{key}", table.best, peaks.get(key)) for key, table in tables.items()]
        if any(found):
            raise Mistaken(*filter(None, found))
        return self

    @model_validator(mode="after")
    def _possible_copies(self) -> Gpu:
        return self._within_memory_rate("memory_bytes_per_s")

    @model_validator(mode="after")
    def _possible_elementwise(self) -> Gpu:
        return self._within_memory_rate("elementwise_bytes_per_s")

    @model_validator(mode="after")
    def _possible_gather(self) -> Gpu:
        return self._within_memory_rate("gather_bytes_per_s")

    @model_validator(mode="after")
    def _possible_merges(self) -> Gpu:
        return self._within_memory_rate("merge_bytes_per_s")

    @model_validator(mode="after")
    def _possible_decode_attention(self) -> Gpu:
        key, peak = "decode_attention_bytes_per_s_by_context", self.datasheet.memory_bytes_per_s
        if found := _beyond(key, self.achieved.decode_attention_bytes_per_s_by_context.best, peak):
            raise Mistaken(found)
        return self

    @model_validator(mode="after")
    def _possible_prefill_attention(self) -> Gpu:
        key, peaks = "prefill_attention_flops_by_tokens", list(self.datasheet.flops.values())
        peak = max(peaks, key=lambda one: one.value) if peaks else None
        if found := _beyond(key, self.achieved.prefill_attention_flops_by_tokens.best, peak):
            raise Mistaken(found)
        return self

    def _within_memory_rate(self, key: str) -> Gpu:
        found = _beyond(key, getattr(self.achieved, key).value, self.datasheet.memory_bytes_per_s)
        if found:
            raise Mistaken(found)
        return self

    @property
    def budget_bytes(self) -> int:
        """What a plan may use: usable less the context reserve."""
        return int(self.memory.usable_bytes.value - self.memory.context_reserve_bytes.value)

    @property
    def ragged_attention(self) -> bool:
        """One call attends requests of all lengths: CUDA kernels take them so, those of the CPU only equal ones."""
        return self.device == "cuda"

    def gemm_rates(self, dtype: str) -> Surface:
        """The table of `dtype`; InputError when this profile has none."""
        tables: dict[str, Surface] = {str(k): v for k, v in self.achieved.gemm_flops_by_rows.items()}
        if dtype not in tables:
            raise InputError(
                f"this profile has no GEMM rate for {dtype}",
                where=f"{self.name}: gpu.achieved.gemm_flops_by_rows",
                cure=f"Profile it, or choose a dtype it has: {', '.join(tables)}",
            )
        return tables[dtype]

    def gemm_time(self, rows: float, inner: int, columns: int, dtype: str, element_bytes: int) -> float:
        """Seconds for [rows, inner] x [inner, columns]: the slower of arithmetic and memory traffic.

        The left operand is read and packed once for all columns, so narrow products take longer for each of them.
        """
        if rows <= 0:
            return 0.0
        traffic = element_bytes * (inner * columns + rows * (inner + columns))
        per_column = 2.0 * rows * inner / self.gemm_rates(dtype).at(rows, inner)
        measured, read = self.achieved.gemm_columns, self.achieved.gemm_input_bytes_per_s
        seconds = per_column * columns
        if measured and read:
            fixed = min(rows * inner * element_bytes / read.value, per_column * measured.value)
            seconds = fixed + (per_column - fixed / measured.value) * columns
        return max(seconds, traffic / self.achieved.memory_bytes_per_s.value)

    def elementwise_time(self, traffic_bytes: float) -> float:
        """Seconds of element-wise kernels that read and write `traffic_bytes` in all."""
        return traffic_bytes / self.achieved.elementwise_bytes_per_s.value

    def merge_time(self, part_bytes: float) -> float:
        """Seconds of merging parts of attention output, `part_bytes` of them in all."""
        return part_bytes / self.achieved.merge_bytes_per_s.value

    def gather_time(self, traffic_bytes: float) -> float:
        """Seconds of looking up embeddings, `traffic_bytes` read and written in all."""
        return traffic_bytes / self.achieved.gather_bytes_per_s.value

    def decode_attention_time(self, kv_bytes: float, requests: float, context: float, group: int) -> float:
        """Seconds to attend one new token of each request to `context` cached ones, `kv_bytes` in all.

        `group` query heads share each K/V head.
        """
        rate = self.achieved.decode_attention_bytes_per_s_by_context.at(context, requests)
        return kv_bytes / rate * self.achieved.shared_attention(group)

    def prefill_attention_time(self, flops: float, tokens: float, prompts: float) -> float:
        """Seconds for causal attention over `prompts` prompts of `tokens` each; `flops` counts half the square."""
        return flops / self.achieved.prefill_attention_flops_by_tokens.at(tokens, prompts)

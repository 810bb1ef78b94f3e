"""A plan as a file a person can read: what it is for, what it decides, what it predicts, and how far from the best."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from planner.consistency import check_plan
from planner.curve import Strict
from planner.decisions import Decisions, chunk_prompts, streams
from planner.errors import HybridserveError, InputError, nearest
from planner.files import dump_yaml, read_yaml, validate, write_whole
from planner.forms import FORM_BY_NAME, CacheForm, blocks_for
from planner.hardware import HardwareProfile
from planner.memory import MemoryLine, fullest_gpu_lines, fullest_host_lines, pinned_total, planned_bytes
from planner.model import ModelSpec
from planner.placement import MiniBatch, RequestGroup
from planner.workload import Workload

Device = Literal["gpu", "host"]
Index = Annotated[int, Field(ge=0, lt=10**7)]
Positive = Annotated[int, Field(gt=0, lt=10**13)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


OUTDATED = {1: "jobs ran in waves", 2: "parts of layers stayed on the GPU"}
"""Versions of plan files that once were written, and what came after each."""


class MadeFor(Strict):
    """What a plan is for, by name and content hash."""

    hardware: str
    hardware_hash: str
    model: str
    model_hash: str
    requests: Positive
    workload_hash: str


class GroupRecord(Strict):
    """Requests alike in every block, e.g. requests: "0-15,18", blocks: [[act@host, 52], [kv@host, 20]]."""

    requests: str = Field(pattern=r"^[0-9]{1,8}(-[0-9]{1,8})?(,[0-9]{1,8}(-[0-9]{1,8})?)*$")
    blocks: list[Annotated[tuple[str, Positive], Field(strict=False)]]


class MiniBatchRecord(Strict):
    groups: list[GroupRecord] = Field(min_length=1)


class WaveRecord(Strict):
    """Requests that run together; the next wave begins when all of them have ended."""

    prefill_chunk_tokens: Positive
    prefill_pass_tokens: Positive
    mini_batches: list[MiniBatchRecord] = Field(min_length=1)


class DecisionsRecord(Strict):
    """The decisions in a form that a person can read and a program can check."""

    resident_parts: list[Index]
    """Of each layer how many parts of its weights stay on the GPU; none where the list is empty."""
    weight_slots: Annotated[int, Field(ge=0, le=64)]
    cache_slots: Annotated[int, Field(ge=1, le=64)]
    store_slots: Annotated[int, Field(ge=1, le=64)]
    waves: list[WaveRecord] = Field(min_length=1)


class StreamRecord(Strict):
    """Predicted use of one stream while decoding."""

    busy_fraction: Annotated[float, Field(ge=0, le=1.01)]
    bytes_per_s: Seconds


class Prediction(Strict):
    """What the simulator says of this plan, before any run."""

    throughput_tokens_per_s: Seconds
    total_s: Seconds
    prefill_s: Seconds
    decode_s: Seconds
    decode_step_s: Seconds
    """Mean over the decode steps."""
    binding: Literal["link", "compute"]
    act_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the cached blocks kept as activations, mean over the decode steps."""
    streams: dict[str, StreamRecord]


class WhatIf(Strict):
    """What a step more of one resource would bring, under the cost model and without its rounding to whole blocks."""

    change: str
    """In words, e.g. "+1 GiB of GPU memory"."""
    tokens_per_s: Seconds
    """More throughput, after the whole step."""
    at_first_tokens_per_s: Seconds
    """The same if every bit of the step were worth what the first is: less is had where the price falls."""
    how: Literal["duals", "re-solved", "not binding"]
    """Where that first price comes from; steps above 2 % are always solved."""


class LineRecord(Strict):
    name: str
    bytes: Annotated[int, Field(ge=0)]
    phase: Literal["always", "prefill", "decode"]


class MemoryRecord(Strict):
    capacity_bytes: Annotated[int, Field(gt=0, lt=10**18)]
    planned_bytes: Annotated[int, Field(ge=0)]
    lines: list[LineRecord]


class Plan(Strict):
    """Everything the simulator and the engine need, and the proof of how good it is."""

    schema_version: Literal[3]
    made_for: MadeFor
    policy: str
    why: list[str]
    prediction: Prediction
    bound_total_s: Seconds
    """No choice under this cost model and policy finishes the job sooner."""
    gap: Annotated[float, Field(allow_inf_nan=False)]
    """(predicted total - bound) / predicted total: how far at most from the best."""
    objective_total_s: Seconds
    """What the solver counts for these decisions, before whole blocks and the order of operations."""
    what_if: list[WhatIf]
    solve_s: Seconds
    solver: str
    memory: dict[Device, MemoryRecord]
    decisions_record: DecisionsRecord = Field(alias="decisions")
    workload_record: dict[str, Any] = Field(alias="workload")
    model: ModelSpec
    hardware: HardwareProfile

    @cached_property
    def workload(self) -> Workload:
        return Workload.from_plain(self.workload_record, where="workload")

    @cached_property
    def waves(self) -> tuple[Decisions, ...]:
        """One after the other. InputError when the record contradicts itself or the workload."""
        return restore_waves(self.decisions_record, self.workload, self.model)

    @property
    def decisions(self) -> Decisions:
        """Those of a job that runs in a single wave; HybridserveError for any other, so that no wave is forgotten."""
        if len(self.waves) > 1:
            raise HybridserveError(f"this plan has {len(self.waves)} waves, where a single one was expected")
        return self.waves[0]

    @property
    def offloads(self) -> bool:
        """False when weights and cache all stay on the GPU."""
        return any(line.bytes for line in self.memory["host"].lines)

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_whole(path, self.to_yaml())


def read_plan(path: Path) -> Plan:
    """InputError when the file is missing, truncated, edited into contradiction or of another version."""
    data = read_yaml(path, "plan")
    version = data.get("schema_version") if isinstance(data, dict) and "decisions" in data else None
    if type(version) is int and version in OUTDATED:
        what = f"this plan is of version {version}, from before {OUTDATED[version]}"
        raise InputError(what, where=f"{path}: schema_version", cure="Plan again: hybridserve plan")
    plan = validate(Plan, data, str(path))
    try:
        check_plan(plan, {str(k): v for k, v in memory_records(plan.model, plan.hardware, plan.waves).items()})
    except InputError as error:
        raise InputError(error.what, where=f"{path}: {error.where}", cure=error.cure) from None
    return plan


def memory_records(
    model: ModelSpec, hardware: HardwareProfile, waves: Sequence[Decisions]
) -> dict[Device, MemoryRecord]:
    """The budgets of both devices, line by line, each of the wave that fills it most."""
    gpu, host = fullest_gpu_lines(model, waves), fullest_host_lines(model, waves, hardware.host.pin_rounding)
    pinned = pinned_total(host, hardware.host.pin_rounding)
    return {
        "gpu": MemoryRecord(
            capacity_bytes=hardware.gpu.budget_bytes, planned_bytes=planned_bytes(gpu), lines=_records(gpu)
        ),
        "host": MemoryRecord(capacity_bytes=hardware.host.budget_bytes, planned_bytes=pinned, lines=_records(host)),
    }


def _records(lines: Sequence[MemoryLine]) -> list[LineRecord]:
    return [LineRecord(name=line.name, bytes=line.nbytes, phase=line.phase) for line in lines]


# ---- decisions as records --------------------------------------------------------------------------


def record_waves(waves: Sequence[Decisions]) -> DecisionsRecord:
    """`waves` as a file says them."""
    first = waves[0]
    return DecisionsRecord(
        resident_parts=list(first.resident_parts),
        weight_slots=first.weight_slots,
        cache_slots=first.cache_slots,
        store_slots=first.store_slots,
        waves=[_record_wave(wave) for wave in waves],
    )


def _record_wave(wave: Decisions) -> WaveRecord:
    chunks = [chunk for chunks in wave.prefill_passes for chunk in chunks]
    return WaveRecord(
        prefill_chunk_tokens=max(chunk.tokens for chunk in chunks),
        prefill_pass_tokens=max(sum(chunk.tokens for chunk in chunks) for chunks in wave.prefill_passes),
        mini_batches=[
            MiniBatchRecord(groups=[
                GroupRecord(requests=_ranges(g.requests), blocks=[(f.name, n) for f, n in _runs(g.blocks)])
                for g in mini_batch.groups
            ])
            for mini_batch in wave.mini_batches
        ],
    )  # fmt: skip


def restore_waves(record: DecisionsRecord, workload: Workload, model: ModelSpec) -> tuple[Decisions, ...]:
    """The waves that a record says; InputError (where: the key) when they contradict the workload or model."""
    seen: set[int] = set()
    waves = tuple(
        _restore_wave(record, wave, workload, seen, f"decisions.waves.{w}") for w, wave in enumerate(record.waves)
    )
    if len(seen) != len(workload):
        missing = next(i for i in range(len(workload)) if i not in seen)
        raise InputError(f"request {missing} is in no mini-batch", where="decisions.waves", cure="Plan again")
    parts, most = record.resident_parts, len(model.prefix_bytes) - 1
    if len(parts) not in (0, model.layers) or max(parts, default=0) > most:
        what = f"not the parts of each of {model.layers} layers, 0 to {most} of them, and not an empty list"
        raise InputError(what, where="decisions.resident_parts", cure="Plan again")
    if record.weight_slots == 0 and streams(model, parts):
        raise InputError("streamed weights need a slot", where="decisions.weight_slots", cure="At least 1, better 2")
    return waves


def _restore_wave(
    shared: DecisionsRecord, record: WaveRecord, workload: Workload, seen: set[int], where: str
) -> Decisions:
    batches = tuple(
        MiniBatch(tuple(_group(g, workload, seen, f"{where}.mini_batches.{m}.groups.{i}")
                        for i, g in enumerate(mini_batch.groups)))
        for m, mini_batch in enumerate(record.mini_batches)
    )  # fmt: skip
    prompts = {r: workload.requests[r].prompt_len for batch in batches for r in batch.requests}
    passes = chunk_prompts(batches, prompts, record.prefill_chunk_tokens, record.prefill_pass_tokens)
    parts = tuple(shared.resident_parts)
    return Decisions(batches, passes, parts, shared.weight_slots, shared.cache_slots, shared.store_slots)


def _group(record: GroupRecord, workload: Workload, seen: set[int], where: str) -> RequestGroup:
    requests = _numbers(record.requests, len(workload), where)
    for request in requests:
        if request in seen:
            raise InputError(f"request {request} is in two groups", where=f"{where}.requests", cure="Plan again")
        seen.add(request)
    lengths = {(workload.requests[r].prompt_len, workload.requests[r].gen_len) for r in requests}
    if len(lengths) != 1:
        raise InputError("these requests differ in length", where=f"{where}.requests", cure="Plan again")
    prompt, gen = lengths.pop()
    for name, _ in record.blocks:
        if name not in FORM_BY_NAME:
            cure = f"{nearest(name, FORM_BY_NAME)} Plan again instead of editing a plan"
            raise InputError(f"unknown cache form '{name}'", where=f"{where}.blocks", cure=cure)
    needed, given = blocks_for(prompt + gen - 1), sum(count for _, count in record.blocks)
    if given != needed:
        what = f"{given} blocks for {prompt} + {gen} - 1 tokens, which take {needed}"
        raise InputError(what, where=f"{where}.blocks", cure="Plan again")
    blocks = [FORM_BY_NAME[name] for name, count in record.blocks for _ in range(count)]
    return RequestGroup(requests, prompt, gen, tuple(blocks))


def _runs(blocks: Sequence[CacheForm]) -> list[tuple[CacheForm, int]]:
    return [(form, len(list(run))) for form, run in groupby(blocks)]


def _ranges(numbers: Sequence[int]) -> str:
    parts, ordered = [], sorted(numbers)
    for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return ",".join(parts)


def _numbers(ranges: str, limit: int, where: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high >= limit or high < low:
            what = f"'{part}' runs backwards" if high < low else f"'{part}' is not within the {limit} requests"
            raise InputError(what, where=f"{where}.requests", cure=f"Numbers are 0 to {limit - 1}. Plan again")
        numbers += range(low, high + 1)
    return tuple(numbers)

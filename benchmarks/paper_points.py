"""The points of the paper's evaluation, and what every policy makes of one: predicted, nothing fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from benchmarks.paper_flexgen import best_setting, without_barriers
from planner.costs import CostModel
from planner.decisions import Decisions, act_share
from planner.errors import InfeasibleError
from planner.hardware import load_hardware
from planner.heuristic import Heuristic
from planner.memory import resident_layers
from planner.model import load_model
from planner.operation import STREAMS
from planner.peers.catalogue import PEERS
from planner.peers.flexgen import FlexGen, speeds
from planner.peers.forecast import Forecast
from planner.peers.job import Job
from planner.plan import MemoryRecord, Prediction, memory_records
from planner.planning import collecting_rarely, predict, solved
from planner.policies import POLICIES
from planner.search import Options
from planner.timeline import Timeline
from planner.wave_timeline import simulate_waves
from planner.workload import Workload

HARDWARE = "rtx4090-pcie4"
MODELS = ("opt-6.7b", "opt-13b", "opt-30b", "opt-66b")
PROMPTS = (128, 256, 512, 1024, 1920)
BATCH, GEN_LEN = 128, 128
TOGETHER = ("deepspeed", "flexgen", "kv-only", "act-only", "hybridserve", "hybrid")
"""All 128 requests at once, as the paper has it; DeepSpeed as many as the GPU holds, since its cache lies there."""
FREE = ("flexgen, in rounds", "hybrid, in waves")
"""The same two when the batch may be cut, as their own planners cut it."""
RELAYS = (5e9, 7.5e9, 1e10, 1.25e10, 1.5e10, 1.84e10)
"""Bytes per second at which FlexGen's unpinned cache may reach the GPU: from whole systems to the best copy."""
WAVES = (2, 4, 8, 16)
"""Tried where hybrid as planned is slower than another policy."""
DIGITS = 6

Figures = dict[str, Any]
Task = tuple[str, int, str]
"""Model, prompt length, and what is predicted: a policy or one of the names below."""
PEERS_OF_POINT, SPLIT, PLACEMENT = "peers", "hybrid, FlexGen's batches", "kv-only, FlexGen's batches"
STAGES = (
    ("flexgen", "FlexGen as it runs"), ("pinned", "unpinned copies"), ("free", "barriers"),
    ("pieces", "weight overlap"), ("placement", "resident blocks and layers"), ("split", "split"),
    ("hybrid", "mini-batches"),
)  # fmt: skip
"""The way from FlexGen to hybrid: what each stage takes away or adds."""


def tasks() -> list[Task]:
    """What takes longest comes first, so that no core is left with it in the end."""
    kinds = ("kv-only", PLACEMENT, SPLIT, "hybridserve", "hybrid", "act-only", PEERS_OF_POINT)
    return [(model, prompt, what) for what, model, prompt in product(kinds, MODELS, PROMPTS)]


def costs_of(model: str, hardware: str = HARDWARE) -> CostModel:
    return CostModel(load_hardware(hardware), load_model(model))


def predicted(model: str, prompt: int, what: str) -> dict[str, Any]:
    """By name, the figures of one task."""
    costs, job = costs_of(model), Job(BATCH, prompt, GEN_LEN)
    work = Workload.uniform(BATCH, prompt, GEN_LEN)
    if what == PEERS_OF_POINT:
        return peers(costs, job, work)
    if what in (PLACEMENT, SPLIT):
        batches = best_setting(costs, job, relay=False).batches
        return {what: with_batches(costs, work, what.partition(",")[0], batches)["throughput_tokens_per_s"]}
    if what != "hybrid":
        return {what: planned(costs, work, what, Options(waves=1))}
    free = planned(costs, work, what, Options())
    together = free if free["waves"] == 1 else planned(costs, work, what, Options(waves=1))
    return {"hybrid": together, FREE[1]: free}


def with_batches(costs: CostModel, work: Workload, policy: str, batches: int) -> Figures:
    """A plan with as many mini-batches as FlexGen has batches, or twice as many where our buffers need it."""
    try:
        return planned(costs, work, policy, Options(waves=1, mini_batches=batches))
    except InfeasibleError:
        if batches >= len(work):
            raise
        return with_batches(costs, work, policy, 2 * batches)


def in_waves(model: str, prompt: int) -> Figures:
    """Hybrid in the best of a few numbers of waves, asked for one by one."""
    costs, work = costs_of(model), Workload.uniform(BATCH, prompt, GEN_LEN)
    found = [planned(costs, work, "hybrid", Options(waves=waves)) for waves in WAVES]
    return max(found, key=lambda one: float(one["throughput_tokens_per_s"]))


# ---- plans ---------------------------------------------------------------------------------------


def planned(costs: CostModel, work: Workload, policy: str, options: Options) -> Figures:
    """A plan's figures, without its shadow prices. InfeasibleError where there is none."""
    with collecting_rarely():
        by = _by_heuristic if POLICIES[policy].heuristic else _by_solver
        waves, timeline, gap = by(costs, work, policy, options)
    prediction, memory = predict(waves, timeline), memory_records(costs.model, costs.hardware, waves)
    found = _of_prediction(prediction, work, memory["gpu"], memory["host"])
    return found | {
        "act_share": _short(act_share(waves)), "waves": len(waves), "mini_batches": len(waves[0].mini_batches),
        "resident_layers": _short(resident_layers(costs.model, waves[0])), "gap": None if gap is None else _short(gap),
    }  # fmt: skip


Planned = tuple[Sequence[Decisions], Timeline, float | None]
"""Waves, their timeline, and the gap that is proven, if any."""


def _by_solver(costs: CostModel, work: Workload, policy: str, options: Options) -> Planned:
    _, found = solved(costs, work, POLICIES[policy], options)
    return found.waves, found.timeline, found.gap


def _by_heuristic(costs: CostModel, work: Workload, policy: str, options: Options) -> Planned:
    heuristic = Heuristic(costs, work, options)
    waves = heuristic.waves()
    if waves is None:
        raise heuristic.refusal()
    return waves, simulate_waves(costs, waves), None


def _of_prediction(one: Prediction, work: Workload, gpu: MemoryRecord, host: MemoryRecord) -> Figures:
    link = one.streams["h2d"]
    tokens = sum(request.gen_len - 1 for request in work.requests)
    moved = link.bytes_per_s * link.busy_fraction * one.decode_s
    return _figures(
        one, moved / tokens, {name: one.streams[name].busy_fraction for name in STREAMS},
        gpu.planned_bytes, host.planned_bytes,
    )  # fmt: skip


# ---- other systems -------------------------------------------------------------------------------


def peers(costs: CostModel, job: Job, work: Workload) -> dict[str, Any]:
    """DeepSpeed, FlexGen, the stages between it and our plans, and FlexGen with a faster relay."""
    rounds = PEERS["flexgen"].forecast(costs, work)
    as_it_runs, pinned = (FlexGen(costs, best_setting(costs, job, relay)) for relay in (True, False))
    memory = as_it_runs.memory(job)
    alone = Forecast.of("flexgen", work, 1, as_it_runs.phases(job), memory, limits="", act_share=0.0)
    stages = {
        "pinned": pinned.phases(job),
        "free": without_barriers(pinned, job, pieces=False),
        "pieces": without_barriers(pinned, job, pieces=True),
    }
    relays = [
        (rate, max(speeds(_with_relay(costs, rate), job).values())) for rate in RELAYS
    ]  # fmt: skip
    setting = as_it_runs.setting
    return {
        "deepspeed": _of_forecast(PEERS["deepspeed"].forecast(costs, work)),
        "flexgen": _of_forecast(alone) | {"setting": vars(setting)},
        FREE[0]: _of_forecast(rounds) | {"setting": list(rounds.settings)},
        "stages": {name: _short(phases.tokens_per_s(job)) for name, phases in stages.items()},
        "relays": [[rate, _short(speed)] for rate, speed in relays],
    }


def _with_relay(costs: CostModel, rate: float) -> CostModel:
    return CostModel(costs.hardware.with_values(**{"link.pageable_h2d_bytes_per_s": rate}), costs.model)


def _of_forecast(one: Forecast) -> Figures:
    batch, busy = one.job.in_rounds(one.rounds).batch, one.phases.busy
    moved = busy.link_bytes / batch if busy else 0.0
    streams = {name: one.busy_fraction(name) for name in STREAMS}
    found = _figures(one, moved, streams, one.memory.gpu, one.memory.host)
    share = None if one.act_share is None else _short(one.act_share)
    return found | {"act_share": share, "waves": one.rounds, "gap": None}


def _figures(
    one: Prediction | Forecast, link_bytes_per_token: float, streams: dict[str, float], gpu: float, host: float
) -> Figures:
    return {
        "throughput_tokens_per_s": _short(one.throughput_tokens_per_s),
        "prefill_s": _short(one.prefill_s),
        "decode_step_s": _short(one.decode_step_s),
        "link_bytes_per_token": _short(link_bytes_per_token),
        "link_busy": _short(streams["h2d"]),
        "gpu_busy": _short(streams["compute"]),
        "binding": one.binding,
        "gpu_bytes": round(gpu),
        "host_bytes": round(host),
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# ---- what a record says --------------------------------------------------------------------------


def speed(point: dict[str, Any], policy: str) -> float:
    """Tokens per second of one policy at one point."""
    return float(point["policies"][policy]["throughput_tokens_per_s"])


def stage_speeds(point: dict[str, Any]) -> list[float]:
    """Tokens per second of every stage between FlexGen and hybrid, in order."""
    known = {**point["stages"], "flexgen": speed(point, "flexgen"), "hybrid": speed(point, "hybrid")}
    return [float(known[name]) for name, _ in STAGES]


def losses(point: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(policy, hybrid) wherever a policy is faster than the hybrid that has the same freedom."""
    pairs = [(policy, "hybrid") for policy in TOGETHER[:-1]] + [(policy, FREE[1]) for policy in ("deepspeed", FREE[0])]
    for policy, ours in pairs:
        if speed(point, policy) > speed(point, ours):
            yield policy, ours

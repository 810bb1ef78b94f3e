"""KVPR: the first tokens of every cache are rebuilt from activations while K and V of the rest cross the link."""

from __future__ import annotations

from collections.abc import Sequence

from planner.costs import CostModel
from planner.forms import BLOCK_TOKENS
from planner.peers.forecast import Forecast, Memory, in_rounds
from planner.peers.job import Job
from planner.peers.pipeline import Run, Work, first_that_fits
from planner.workload import Workload


def kvpr_saving(costs: CostModel, job: Job) -> float:
    """Share of a decode step's latency that KVPR saves against moving all K and V; weights are on the GPU.

    Both sides prefetch the next layer, so the forward pass is hidden unless it is longer.
    """
    cached = round(job.mean_cached)
    forward = costs.decode_forward(job.batch, job.batch * cached).seconds
    _, best = prefix(costs, job.batch, cached)
    per_token = job.batch * costs.model.kv_bytes_per_token_layer
    return 1 - max(best, forward) / max(costs.h2d(cached * per_token), forward)


def prefix(costs: CostModel, requests: int, cached: int) -> tuple[int, float]:
    """Tokens of each of `requests` to rebuild, and the seconds of a layer then, for `cached` tokens of each.

    A layer takes `min over l of T_act(l) + max(T_rebuild(l), T_kv(s - l))`: the activations of the first l tokens
    cross alone, then their K and V are rebuilt while the rest crosses (KVPR, its scheduler's objective).
    """
    found = min((_layer_s(costs, requests, cached, n), n) for n in range(cached + 1))
    return found[1], found[0]


def _layer_s(costs: CostModel, requests: int, cached: int, rebuilt: int) -> float:
    model = costs.model
    activations = costs.h2d(requests * rebuilt * model.act_bytes_per_token_layer)
    rest = costs.h2d((cached - rebuilt) * requests * model.kv_bytes_per_token_layer)
    return activations + max(_rebuild_s(costs, requests * rebuilt), rest)


def _rebuild_s(costs: CostModel, tokens: int) -> float:
    return costs.rebuild(-(-tokens // BLOCK_TOKENS)).seconds


def _step(run: Run, cached: float) -> Sequence[Work]:
    costs, model, rows = run.costs, run.costs.model, run.requests
    rebuilt, _ = prefix(costs, rows, round(cached))
    act, kv = model.act_bytes_per_token_layer, model.kv_bytes_per_token_layer
    work = Work(
        act_bytes=rows * rebuilt * act,
        kv_bytes=rows * (round(cached) - rebuilt) * kv,
        rebuild_s=_rebuild_s(costs, rows * rebuilt),
        forward_s=costs.decode_forward(rows, rows * cached).seconds,
        stored_bytes=rows * (act + kv),
    )
    return [work] * model.layers


def forecast(costs: CostModel, workload: Workload) -> Forecast:
    """KVPR with the cache in host memory, and weights on the GPU if they fit beside its buffers.

    Both K and V and the activations of the prefix are kept, since the split moves as contexts grow.
    InfeasibleError where a single request does not fit.
    """
    job, layers = Job.padded(workload), costs.model.layers
    most = job.prompt_len + job.gen_len - 1

    def memory(run: Run) -> Memory:
        rebuilt, _ = prefix(costs, run.requests, most)
        return run.memory(layers * rebuilt, layers * most, rebuilt, most - rebuilt)

    found = first_that_fits(costs, job, memory)
    if found is None:
        alone = memory(Run(costs, job.in_rounds(job.batch), 1, True))
        raise alone.refusal("kvpr", costs.hardware, "Shorten the prompts, or choose a smaller model")
    rounds, run = found
    rebuilt, _ = prefix(costs, run.requests, round(job.mean_cached))
    return Forecast.of(
        "kvpr", workload, rounds, run.phases(_step, act_alone=True), memory(run), act_share=rebuilt / job.mean_cached,
        limits="activations that overlap no rebuild, all requests split alike, and nothing of the cache on the GPU",
        settings=(
            in_rounds(rounds, run.said),
            f"of {job.mean_cached:.0f} cached tokens, the first {rebuilt} are rebuilt",
        ),
    )  # fmt: skip

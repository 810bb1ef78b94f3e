"""HCache: some layers keep the activations of all their tokens, the others K and V."""

from __future__ import annotations

from collections.abc import Sequence

from planner.costs import CostModel
from planner.decisions import spread_layers
from planner.forms import blocks_for
from planner.peers.forecast import Forecast, Memory, in_rounds
from planner.peers.job import Job
from planner.peers.pipeline import Run, Work, first_that_fits
from planner.workload import Workload


def rebuilt_layers(run: Run) -> int:
    """How many layers keep activations: as many as make a step at the mean context shortest."""
    cached, layers = round(run.job.mean_cached), run.costs.model.layers
    return min(range(layers + 1), key=lambda n: (run.step_s(_layers(run, cached, n), act_alone=False), n))


def _kv_work(run: Run, cached: float) -> Work:
    model, rows = run.costs.model, run.requests
    kv = model.kv_bytes_per_token_layer
    forward = run.costs.decode_forward(rows, rows * cached).seconds
    return Work(kv_bytes=rows * cached * kv, forward_s=forward, stored_bytes=rows * kv)


def _act_work(run: Run, cached: float) -> Work:
    model, rows = run.costs.model, run.requests
    act = model.act_bytes_per_token_layer
    forward = run.costs.decode_forward(rows, rows * cached).seconds
    rebuild = run.costs.rebuild(blocks_for(round(rows * cached))).seconds
    return Work(act_bytes=rows * cached * act, rebuild_s=rebuild, forward_s=forward, stored_bytes=rows * act)


def _layers(run: Run, cached: float, rebuilt: int) -> Sequence[Work]:
    """The work of every layer when `rebuilt` of them keep activations."""
    layers = run.costs.model.layers
    act, kv = _act_work(run, cached), _kv_work(run, cached)
    # Evenly spread, so that neither stream waits for long: HCache's own order serves restoring a cache, not decoding.
    chosen = set(spread_layers(rebuilt, layers))
    return [act if layer in chosen else kv for layer in range(layers)]


def forecast(costs: CostModel, workload: Workload) -> Forecast:
    """HCache's split by layers, used in every decode step, and weights on the GPU if they fit beside its buffers.

    InfeasibleError where a single request does not fit.
    """
    job, layers = Job.padded(workload), costs.model.layers
    most = job.prompt_len + job.gen_len - 1

    def memory(run: Run, n: int) -> Memory:
        return run.memory(n * most, (layers - n) * most, most if n else 0, most if n < layers else 0)

    # K and V everywhere take most: what fits so fits with any split.
    found = first_that_fits(costs, job, lambda run: memory(run, 0))
    if found is None:
        alone = memory(Run(costs, job.in_rounds(job.batch), 1, True), 0)
        raise alone.refusal("hcache", costs.hardware, "Shorten the prompts, or choose a smaller model")
    rounds, run = found
    n = rebuilt_layers(run)

    def step(run: Run, cached: float) -> Sequence[Work]:
        return _layers(run, cached, n)

    return Forecast.of(
        "hcache", workload, rounds, run.phases(step, act_alone=False), memory(run, n), act_share=n / layers,
        limits="one form for all of a layer, and nothing of the cache on the GPU",
        settings=(
            in_rounds(rounds, run.said),
            f"{n} of {layers} layers keep activations",
        ),
    )  # fmt: skip

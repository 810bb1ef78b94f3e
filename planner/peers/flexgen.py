"""FlexGen as it runs: a zig-zag schedule with a barrier after every step, so its time is a sum of maxima.

Sources: FlexGen `flex_opt.py` (its loops; `load_weight` acts at the first batch only; whole tensors are placed by the
middle of their cumulative size) and `pytorch_backend.py` (K and V lie in ordinary memory and pass through a pinned
relay that the issuing thread fills; attention on the CPU copies them to a float32 workspace).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from planner.costs import CostModel
from planner.errors import InputError
from planner.peers.forecast import Forecast, Memory, in_rounds
from planner.peers.job import Busy, Job, Phases, rounds_to_try
from planner.workload import Workload

ATTENTION_MATRICES, MLP_MATRICES = 4, 2
SMALLEST = 4
"""FlexGen's default GPU batch; the search tries no smaller one."""
WORKSPACE_TRAFFIC = 5
"""Bytes of host memory traffic per byte of K and V in CPU attention: read as fp16, written and read as float32."""


@dataclass(frozen=True)
class Setting:
    """What FlexGen's command line sets. Shares lie between 0 and 1."""

    gpu_batch: int
    batches: int
    weights_on_gpu: float = 0.0
    cache_on_gpu: float = 0.0
    overlap: bool = True
    cpu_attention: bool = False
    relay: bool = True
    """False is not FlexGen as it runs: K and V lie in pinned memory, so no relay stands in the way."""

    @property
    def requests(self) -> int:
        return self.gpu_batch * self.batches


def placed(share: float, tensors: int) -> float:
    """Share of `tensors` equal ones that land on the GPU: those whose middle lies in the last `share`."""
    return sum((i + 0.5) / tensors >= 1 - share for i in range(tensors)) / tensors


@dataclass(frozen=True)
class Stage:
    """One of FlexGen's schedule layers, bytes and seconds: for one GPU batch, except the weights, which all share."""

    weights: float = 0.0
    cache: float = 0.0
    store: float = 0.0
    compute: float = 0.0


class FlexGen:
    """Times of one setting on one machine. `host_bytes_per_s` is needed for CPU attention only."""

    def __init__(self, costs: CostModel, setting: Setting, host_bytes_per_s: float | None = None) -> None:
        if setting.cpu_attention and host_bytes_per_s is None:
            raise InputError("CPU attention needs the host's memory bandwidth", cure="Give host_memory_bytes_per_s")
        self.costs, self.setting, self.host_bytes_per_s = costs, setting, host_bytes_per_s
        model = costs.model
        attention = model.hidden * 2 * (model.d_q + model.d_kv) * model.element_bytes
        self.attention_bytes, self.mlp_bytes = attention, model.layer_bytes - attention
        self.embedding_bytes = model.vocab * model.hidden * model.element_bytes

    def phases(self, job: Job) -> Phases:
        """`job.batch` is ignored: the policy says how many requests run."""
        cached = Job(self.setting.gpu_batch, job.prompt_len, job.gen_len).mean_cached
        return Phases(self._pass(job.prompt_len, 0.0), self._pass(1, cached), self._busy(cached))

    def tokens_per_s(self, job: Job) -> float:
        """Generated tokens over prefill and decode."""
        return self.phases(job).tokens_per_s(Job(self.setting.requests, job.prompt_len, job.gen_len))

    # ---- one pass over all layers ----------------------------------------------------------------

    def _pass(self, new: int, cached: float) -> float:
        """Seconds for `new` tokens of every request over `cached` ones."""
        layers = self.costs.model.layers
        embed, attention, mlp, head = self.stages(new, cached)
        order = ((embed, attention, 1), (attention, mlp, layers), (mlp, attention, layers - 1), (mlp, head, 1))
        return sum(times * self._all_batches(now, then, new) for now, then, times in (*order, (head, embed, 1)))

    def _busy(self, cached: float) -> Busy:
        """Of one decode step: each stage's weights cross once, and everything else for each batch."""
        layers, batches = self.costs.model.layers, self.setting.batches
        link = compute = nbytes = 0.0
        for stage, times in zip(self.stages(1, cached), (1, layers, layers, 1), strict=True):
            hidden = self.setting.gpu_batch * self.costs.model.hidden * self.costs.model.element_bytes
            moved = stage.weights + batches * (stage.cache + hidden)
            each = self.costs.h2d(stage.weights + hidden) + (batches - 1) * self.costs.h2d(hidden)
            each += batches * self.costs.h2d(stage.cache)
            nbytes, link = nbytes + times * moved, link + times * each
            compute += times * batches * stage.compute
        return Busy(link, compute, nbytes)

    def _all_batches(self, now: Stage, then: Stage, new: int) -> float:
        if self.setting.batches == 1:
            return self._step(now, then.weights, then.cache, new)
        first, last = self._step(now, then.weights, now.cache, new), self._step(now, 0.0, then.cache, new)
        between = self.setting.batches - 2
        return first + (between * self._step(now, 0.0, now.cache, new) if between else 0.0) + last

    def _step(self, now: Stage, weights: float, cache: float, new: int) -> float:
        """One (layer, batch): next weights and cache arrive while this batch computes; then everything stops."""
        link, model = self.costs.hardware.link, self.costs.model
        hidden = self.setting.gpu_batch * new * model.hidden * model.element_bytes
        weights_s, cache_s = self.costs.h2d(weights + hidden), self.costs.h2d(cache)
        # What an unpinned copy takes beyond a pinned one is the relay: the host's copy, before compute is issued.
        beyond_pinned = cache / link.pageable_h2d_bytes_per_s.value - cache / link.h2d_bytes_per_s.value
        relay_s = beyond_pinned if self.setting.relay else 0.0
        store_s = now.store / link.pageable_d2h_bytes_per_s.value + self.costs.d2h(hidden)
        if not self.setting.overlap:
            return weights_s + relay_s + cache_s + now.compute + store_s
        return max(max(weights_s, relay_s) + cache_s, relay_s + now.compute, store_s)

    def stages(self, new: int, cached: float) -> tuple[Stage, Stage, Stage, Stage]:
        """Embedding, attention, feed-forward and head."""
        costs, model, setting = self.costs, self.costs.model, self.setting
        rows, off_gpu = setting.gpu_batch * new, 1 - setting.cache_on_gpu
        kv_bytes = setting.gpu_batch * model.kv_bytes_per_token_layer
        outer = self.embedding_bytes * (1 - placed(setting.weights_on_gpu, 1))
        mlp_s, attend_s = self._mlp_s(rows), self._attend_s(new, cached)
        overhead_s = costs.hardware.gpu.achieved.forward_overhead_s.value / 2
        return (
            Stage(weights=outer, compute=costs.embed(rows).seconds),
            Stage(
                weights=self.attention_bytes * (1 - placed(setting.weights_on_gpu, ATTENTION_MATRICES)),
                cache=0.0 if setting.cpu_attention else cached * kv_bytes * off_gpu,
                store=new * kv_bytes * off_gpu,
                compute=costs.projections(rows).seconds - mlp_s + attend_s + overhead_s,
            ),
            Stage(
                weights=self.mlp_bytes * (1 - placed(setting.weights_on_gpu, MLP_MATRICES)), compute=mlp_s + overhead_s
            ),
            Stage(weights=outer, compute=costs.sample(setting.gpu_batch).seconds),
        )

    def _mlp_s(self, rows: int) -> float:
        model, gpu = self.costs.model, self.costs.hardware.gpu
        up, down = (model.hidden, model.ffn), (model.ffn, model.hidden)
        shapes = (up, up, down) if model.gated else (up, down)
        return sum(gpu.gemm_time(rows, a, b, model.dtype, model.element_bytes) for a, b in shapes)

    def _attend_s(self, new: int, cached: float) -> float:
        batch = self.setting.gpu_batch
        if not cached:
            return batch * self.costs.prefill_attention(new).seconds
        if self.host_bytes_per_s is None or not self.setting.cpu_attention:
            return self.costs.decode_attention(batch, cached).seconds
        kv_bytes = batch * cached * self.costs.model.kv_bytes_per_token_layer
        return WORKSPACE_TRAFFIC * kv_bytes / self.host_bytes_per_s

    # ---- memory ----------------------------------------------------------------------------------

    def memory(self, job: Job) -> Memory:
        """Home, working and largest temporary tensors, by FlexGen's own placement."""
        model, setting = self.costs.model, self.setting
        on_gpu = placed(setting.weights_on_gpu, ATTENTION_MATRICES) * self.attention_bytes
        on_gpu += placed(setting.weights_on_gpu, MLP_MATRICES) * self.mlp_bytes
        outer_on_gpu = 2 * self.embedding_bytes * placed(setting.weights_on_gpu, 1)
        tokens = setting.gpu_batch * (job.prompt_len + job.gen_len)
        cache = setting.batches * tokens * model.kv_bytes_per_token_layer * model.layers
        gpu = model.layers * on_gpu + outer_on_gpu + setting.cache_on_gpu * cache
        # Two buffers for streamed weights and for one batch's cache, then prefill's widest tensors.
        gpu += 2 * max(self.mlp_bytes, self.embedding_bytes) + 2 * tokens * model.kv_bytes_per_token_layer
        rows = setting.gpu_batch * job.prompt_len
        scores = 2 * rows * job.prompt_len * model.heads
        gpu += model.element_bytes * (3 * rows * model.hidden + max(rows * model.ffn, scores))
        host = model.layers * (model.layer_bytes - on_gpu) + 2 * self.embedding_bytes - outer_on_gpu
        return Memory(gpu, host + (1 - setting.cache_on_gpu) * cache)


def speeds(costs: CostModel, job: Job, relay: bool = True) -> dict[Setting, float]:
    """Tokens/s of every setting without CPU attention that runs `job.batch` requests together and fits.

    InputError when none does.
    """
    found = _speeds(costs, job, relay)
    if not found:
        raise InputError(f"no FlexGen setting fits {costs.model.name}", where=costs.hardware.id, cure="Lower the batch")
    return found


def _speeds(costs: CostModel, job: Job, relay: bool = True) -> dict[Setting, float]:
    candidates = (FlexGen(costs, setting) for setting in _grid(job.batch, relay))
    return {one.setting: one.tokens_per_s(job) for one in candidates if one.memory(job).fits(costs.hardware)}


def _grid(requests: int, relay: bool) -> Iterator[Setting]:
    whole = [(requests // n, n) for n in range(1, requests + 1) if requests % n == 0]
    sizes = [pair for pair in whole if pair[0] >= min(SMALLEST, requests)]
    # Shares at which another whole matrix moves, so nothing between them is another setting.
    weights = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    for (gpu_batch, batches), on_gpu, cache in product(sizes, weights, (0.0, 0.25, 0.5, 0.75, 1.0)):
        yield Setting(gpu_batch, batches, on_gpu, cache, relay=relay)


def forecast(costs: CostModel, workload: Workload) -> Forecast:
    """FlexGen at its best setting without CPU attention. Of growing numbers of rounds, its blocks, it stops at the
    first that is slower, as FlexGen's own search does. InfeasibleError where a single request does not fit."""
    job = Job.padded(workload)
    best: tuple[float, int, Setting] | None = None
    for rounds in rounds_to_try(job):
        part = _divisible(job.in_rounds(rounds))
        found = _speeds(costs, part)
        if not found:
            continue
        setting = max(found, key=lambda one: found[one])
        total_s = rounds * FlexGen(costs, setting).phases(part).total_s(part)
        if best and total_s >= best[0]:
            break
        best = total_s, rounds, setting
    if best is None:
        alone = FlexGen(costs, Setting(1, 1)).memory(job)
        raise alone.refusal("flexgen", costs.hardware, "Shorten the prompts, or choose a smaller model")
    _, rounds, chosen = best
    one = FlexGen(costs, chosen)
    phases, pinned = one.phases(job), FlexGen(costs, replace(chosen, relay=False)).phases(job)
    assert phases.busy is not None
    ideal = max(phases.busy.link_s, phases.busy.compute_s)
    where = f"on the GPU {chosen.weights_on_gpu:.0%} of the weights, {chosen.cache_on_gpu:.0%} of the cache"
    return Forecast.of(
        "flexgen", workload, rounds, phases, one.memory(job), act_share=0.0,
        limits=f"K and V that pass through ordinary memory ({1 - pinned.decode_step_s / phases.decode_step_s:.0%} of "
        f"decoding) and a barrier after every layer and batch ({1 - ideal / pinned.decode_step_s:.0%} of the rest)",
        settings=(f"{in_rounds(rounds, f'{chosen.batches} batches of {chosen.gpu_batch}')}; {where}",),
    )  # fmt: skip


def _divisible(job: Job) -> Job:
    """FlexGen takes whole GPU batches: as many requests as the next multiple of its smallest."""
    return replace(job, batch=-(-job.batch // SMALLEST) * SMALLEST) if job.batch > SMALLEST else job

"""FlexGen as it runs: a zig-zag schedule with a barrier after every step, so its time is a sum of maxima.

Sources: FlexGen `flex_opt.py` (its loops; `load_weight` acts at the first batch only; whole tensors are placed by the
middle of their cumulative size) and `pytorch_backend.py` (K and V lie in ordinary memory and pass through a pinned
relay that the issuing thread fills; attention on the CPU copies them to a float32 workspace).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from benchmarks.peers import Job, Phases
from planner.costs import CostModel
from planner.errors import InputError

ATTENTION_MATRICES, MLP_MATRICES = 4, 2
SMALLEST = 4
"""FlexGen's default GPU batch; the search tries no smaller one."""
WORKSPACE_TRAFFIC = 5
"""Bytes of host memory traffic per byte of K and V in CPU attention: read as fp16, written and read as float32."""


@dataclass(frozen=True)
class Policy:
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
class _Stage:
    """One of FlexGen's schedule layers: for one GPU batch, except the weights, which all batches share."""

    weights: float = 0.0
    cache: float = 0.0
    store: float = 0.0
    compute: float = 0.0


class FlexGen:
    """Times of one policy on one machine. `host_bytes_per_s` is needed for CPU attention only."""

    def __init__(self, costs: CostModel, policy: Policy, host_bytes_per_s: float | None = None) -> None:
        if policy.cpu_attention and host_bytes_per_s is None:
            raise InputError("CPU attention needs the host's memory bandwidth", cure="Give host_memory_bytes_per_s")
        self.costs, self.policy, self.host_bytes_per_s = costs, policy, host_bytes_per_s
        model = costs.model
        attention = model.hidden * 2 * (model.d_q + model.d_kv) * model.element_bytes
        self.attention_bytes, self.mlp_bytes = attention, model.layer_bytes - attention
        self.embedding_bytes = model.vocab * model.hidden * model.element_bytes

    def phases(self, job: Job) -> Phases:
        """`job.batch` is ignored: the policy says how many requests run."""
        decode = Job(self.policy.gpu_batch, job.prompt_len, job.gen_len).mean_cached
        return Phases(self._pass(job.prompt_len, 0.0), self._pass(1, decode))

    def tokens_per_s(self, job: Job) -> float:
        """Generated tokens over prefill and decode."""
        return self.phases(job).tokens_per_s(Job(self.policy.requests, job.prompt_len, job.gen_len))

    # ---- one pass over all layers ----------------------------------------------------------------

    def _pass(self, new: int, cached: float) -> float:
        """Seconds for `new` tokens of every request over `cached` ones."""
        layers = self.costs.model.layers
        embed, attention, mlp, head = self._stages(new, cached)
        order = ((embed, attention, 1), (attention, mlp, layers), (mlp, attention, layers - 1), (mlp, head, 1))
        return sum(times * self._all_batches(now, then, new) for now, then, times in (*order, (head, embed, 1)))

    def _all_batches(self, now: _Stage, then: _Stage, new: int) -> float:
        last = self.policy.batches - 1
        return sum(
            self._step(now, then.weights if k == 0 else 0.0, then.cache if k == last else now.cache, new)
            for k in range(last + 1)
        )

    def _step(self, now: _Stage, weights: float, cache: float, new: int) -> float:
        """One (layer, batch): next weights and cache arrive while this batch computes; then everything stops."""
        link, model = self.costs.hardware.link, self.costs.model
        hidden = self.policy.gpu_batch * new * model.hidden * model.element_bytes
        weights_s, cache_s = self.costs.h2d(weights + hidden), self.costs.h2d(cache)
        # What an unpinned copy takes beyond a pinned one is the relay: the host's copy, before compute is issued.
        beyond_pinned = cache / link.pageable_h2d_bytes_per_s.value - cache / link.h2d_bytes_per_s.value
        relay_s = beyond_pinned if self.policy.relay else 0.0
        store_s = now.store / link.pageable_d2h_bytes_per_s.value + self.costs.d2h(hidden)
        if not self.policy.overlap:
            return weights_s + relay_s + cache_s + now.compute + store_s
        return max(max(weights_s, relay_s) + cache_s, relay_s + now.compute, store_s)

    def _stages(self, new: int, cached: float) -> tuple[_Stage, _Stage, _Stage, _Stage]:
        """Embedding, attention, feed-forward and head."""
        costs, model, policy = self.costs, self.costs.model, self.policy
        rows, off_gpu = policy.gpu_batch * new, 1 - policy.cache_on_gpu
        kv_bytes = policy.gpu_batch * model.kv_bytes_per_token_layer
        outer = self.embedding_bytes * (1 - placed(policy.weights_on_gpu, 1))
        mlp_s, attend_s = self._mlp_s(rows), self._attend_s(new, cached)
        overhead_s = costs.hardware.gpu.achieved.forward_overhead_s.value / 2
        return (
            _Stage(weights=outer, compute=costs.embed(rows).seconds),
            _Stage(
                weights=self.attention_bytes * (1 - placed(policy.weights_on_gpu, ATTENTION_MATRICES)),
                cache=0.0 if policy.cpu_attention else cached * kv_bytes * off_gpu,
                store=new * kv_bytes * off_gpu,
                compute=costs.projections(rows).seconds - mlp_s + attend_s + overhead_s,
            ),
            _Stage(
                weights=self.mlp_bytes * (1 - placed(policy.weights_on_gpu, MLP_MATRICES)), compute=mlp_s + overhead_s
            ),
            _Stage(weights=outer, compute=costs.sample(policy.gpu_batch).seconds),
        )

    def _mlp_s(self, rows: int) -> float:
        model, gpu = self.costs.model, self.costs.hardware.gpu
        shapes = ((model.hidden, model.ffn), (model.ffn, model.hidden))
        return sum(gpu.gemm_time(rows, a, b, model.dtype, model.element_bytes) for a, b in shapes)

    def _attend_s(self, new: int, cached: float) -> float:
        batch = self.policy.gpu_batch
        if not cached:
            return batch * self.costs.prefill_attention(new).seconds
        if self.host_bytes_per_s is None or not self.policy.cpu_attention:
            return self.costs.decode_attention(batch, cached).seconds
        kv_bytes = batch * cached * self.costs.model.kv_bytes_per_token_layer
        return WORKSPACE_TRAFFIC * kv_bytes / self.host_bytes_per_s

    # ---- memory ----------------------------------------------------------------------------------

    def fits(self, job: Job) -> bool:
        """Whether home, working and largest temporary tensors fit both memories, by FlexGen's own placement."""
        model, policy, hardware = self.costs.model, self.policy, self.costs.hardware
        on_gpu = placed(policy.weights_on_gpu, ATTENTION_MATRICES) * self.attention_bytes
        on_gpu += placed(policy.weights_on_gpu, MLP_MATRICES) * self.mlp_bytes
        outer_on_gpu = 2 * self.embedding_bytes * placed(policy.weights_on_gpu, 1)
        tokens = policy.gpu_batch * (job.prompt_len + job.gen_len)
        cache = policy.batches * tokens * model.kv_bytes_per_token_layer * model.layers
        gpu = model.layers * on_gpu + outer_on_gpu + policy.cache_on_gpu * cache
        # Two buffers for streamed weights and for one batch's cache, then prefill's widest tensors.
        gpu += 2 * max(self.mlp_bytes, self.embedding_bytes) + 2 * tokens * model.kv_bytes_per_token_layer
        rows = policy.gpu_batch * job.prompt_len
        scores = 2 * rows * job.prompt_len * model.heads
        gpu += model.element_bytes * (3 * rows * model.hidden + max(rows * model.ffn, scores))
        host = model.layers * (model.layer_bytes - on_gpu) + 2 * self.embedding_bytes - outer_on_gpu
        host += (1 - policy.cache_on_gpu) * cache
        return gpu <= hardware.gpu.budget_bytes and host <= hardware.host.budget_bytes


def speeds(costs: CostModel, job: Job, relay: bool = True) -> dict[Policy, float]:
    """Tokens/s of every policy without CPU attention that runs `job.batch` requests together and fits.

    InputError when none does.
    """
    fitting = (FlexGen(costs, policy) for policy in _grid(job.batch, relay))
    found = {one.policy: one.tokens_per_s(job) for one in fitting if one.fits(job)}
    if not found:
        raise InputError(f"no FlexGen policy fits {costs.model.name}", where=costs.hardware.id, cure="Lower the batch")
    return found


def _grid(requests: int, relay: bool) -> Iterator[Policy]:
    sizes = [(requests // n, n) for n in range(1, requests + 1) if requests % n == 0 and requests // n >= SMALLEST]
    # Shares at which another whole matrix moves, so nothing between them is another policy.
    weights = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    for (gpu_batch, batches), on_gpu, cache in product(sizes, weights, (0.0, 0.25, 0.5, 0.75, 1.0)):
        yield Policy(gpu_batch, batches, on_gpu, cache, relay=relay)

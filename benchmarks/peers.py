"""How other systems run, as functions of this project's cost model. Nothing here is fitted to what they published.

Every function takes a `CostModel` of a shipped profile and a `Job`. FlexGen has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.costs import CostModel
from planner.forms import BLOCK_TOKENS


@dataclass(frozen=True)
class Job:
    """Equal requests, run as one batch."""

    batch: int
    prompt_len: int
    gen_len: int

    @property
    def mean_cached(self) -> float:
        """Cached tokens of one request, mean over the decode steps; prefill yields the first token."""
        return self.prompt_len + self.gen_len / 2 - 1


@dataclass(frozen=True)
class Phases:
    """Seconds of prefill and of a mean decode step."""

    prefill_s: float
    decode_step_s: float

    def tokens_per_s(self, job: Job) -> float:
        """Generated tokens over prefill and decode, as FlexGen's and DeepSpeed's scripts count."""
        return job.batch * job.gen_len / (self.prefill_s + (job.gen_len - 1) * self.decode_step_s)


def compute(costs: CostModel, job: Job) -> Phases:
    """GPU seconds of a pass over all layers, K and V on the GPU, one attention call a layer."""
    layers, tokens = costs.model.layers, job.batch * job.prompt_len
    prefill = layers * costs.prefill_forward((job.prompt_len,) * job.batch).seconds + costs.embed(tokens).seconds
    decode = layers * costs.decode_forward(job.batch, job.batch * job.mean_cached).seconds
    decode += costs.embed(job.batch).seconds
    sample = costs.sample(job.batch).seconds
    return Phases(prefill + sample, decode + sample)


def accelerate(costs: CostModel, job: Job) -> Phases:
    """Hugging Face Accelerate with layers on the CPU: copy a module's weights, compute, drop them; nothing overlaps.

    Sources: accelerate `hooks.py` (AlignDevicesHook: ordinary memory, no stream, no prefetch); FlexGen's
    benchmark/hf_ds/hf_opt.py (embedding and head on the GPU, all decoder layers on the CPU, K and V on the GPU).
    """
    link, model = costs.hardware.link, costs.model
    copies = model.layers * (link.latency_s.value + model.layer_bytes / link.pageable_h2d_bytes_per_s.value)
    gpu = compute(costs, job)
    return Phases(copies + gpu.prefill_s, copies + gpu.decode_step_s)


def zero_inference(costs: CostModel, job: Job) -> Phases:
    """DeepSpeed ZeRO-Inference as FlexGen's authors ran it: all parameters fetched for each pass, in turn with compute.

    Sources: FlexGen's hf_opt.py (stage 3, pinned weights, persistence threshold 0, a prefetch of a twelfth of a
    layer, which is taken as none); DeepSpeed 0.7 `partition_parameters.py`, all_gather_coalesced (a blocking copy to
    the GPU, then one more on it, into the gathered buffer). The tied embedding is fetched twice, as input and as
    head: what lies between is more than the reuse distance.
    """
    model, gpu = costs.model, compute(costs, job)
    head = model.vocab * model.hidden * model.element_bytes if model.tied else 0
    streamed = model.weight_bytes + head
    gathered = 2 * streamed / costs.hardware.gpu.achieved.memory_bytes_per_s.value
    fetch = costs.h2d(streamed) + gathered
    return Phases(fetch + gpu.prefill_s, fetch + gpu.decode_step_s)


def zero_inference_bound(costs: CostModel, job: Job) -> Phases:
    """ZeRO-Inference with K and V attended on the CPU: no faster than with pinned weights and attention free.

    Source: DeepSpeedExamples, zero_inference/README.md. Pinning is off unless asked for there, and what the host's
    memory delivers is not stated: both only slow it down, so this bounds the published figure from above.
    """
    model = costs.model
    head = model.vocab * model.hidden * model.element_bytes if model.tied else 0
    fetch = costs.h2d(model.weight_bytes + head)
    decode = model.layers * costs.decode_forward(job.batch, 0).seconds + costs.sample(job.batch).seconds
    return Phases(fetch + compute(costs, job).prefill_s, fetch + decode)


def kvpr_saving(costs: CostModel, job: Job) -> float:
    """Share of a decode step's latency that KVPR saves against moving all K and V; weights are on the GPU.

    A layer takes `min over l of T_act(l) + max(T_rebuild(l), T_kv(s - l))`: the activations of the first l tokens
    cross alone, then their K and V are rebuilt while the rest crosses (KVPR, its scheduler's objective). Both sides
    prefetch the next layer, so the forward pass is hidden unless it is longer.
    """
    model, cached = costs.model, round(job.mean_cached)
    forward = costs.decode_forward(job.batch, job.batch * cached).seconds
    per_token = job.batch * model.kv_bytes_per_token_layer

    def layer_s(recomputed: int) -> float:
        blocks = -(-job.batch * recomputed // BLOCK_TOKENS)
        activations = costs.h2d(job.batch * recomputed * model.act_bytes_per_token_layer)
        return activations + max(costs.rebuild(blocks).seconds, costs.h2d((cached - recomputed) * per_token))

    best = min(layer_s(recomputed) for recomputed in range(cached + 1))
    return 1 - max(best, forward) / max(costs.h2d(cached * per_token), forward)

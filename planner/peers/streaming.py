"""Systems that stream whole layers in turn with compute and keep K and V on the GPU: Accelerate, ZeRO-Inference."""

from __future__ import annotations

from collections.abc import Callable

from planner.costs import CostModel
from planner.memory import workspace_elements
from planner.peers.forecast import Forecast, Memory, in_rounds
from planner.peers.job import Busy, Job, Phases, compute, fewest_rounds
from planner.workload import Workload


def accelerate(costs: CostModel, job: Job) -> Phases:
    """Hugging Face Accelerate with layers on the CPU: copy a module's weights, compute, drop them; nothing overlaps.

    Sources: accelerate `hooks.py` (AlignDevicesHook: ordinary memory, no stream, no prefetch); FlexGen's
    benchmark/hf_ds/hf_opt.py (embedding and head on the GPU, all decoder layers on the CPU, K and V on the GPU).
    """
    link, model = costs.hardware.link, costs.model
    copies = model.layers * (link.latency_s.value + model.layer_bytes / link.pageable_h2d_bytes_per_s.value)
    return _in_turn(costs, job, copies, model.layers * model.layer_bytes)


def zero_inference(costs: CostModel, job: Job) -> Phases:
    """DeepSpeed ZeRO-Inference as FlexGen's authors ran it: all parameters fetched for each pass, in turn with compute.

    Sources: FlexGen's hf_opt.py (stage 3, pinned weights, persistence threshold 0, a prefetch of a twelfth of a
    layer, which is taken as none); DeepSpeed 0.7 `partition_parameters.py`, all_gather_coalesced (a blocking copy to
    the GPU, then one more on it, into the gathered buffer). The tied embedding is fetched twice, as input and as
    head: what lies between is more than the reuse distance.
    """
    model = costs.model
    streamed = model.weight_bytes + (_head_bytes(costs) if model.tied else 0)
    gathered = 2 * streamed / costs.hardware.gpu.achieved.memory_bytes_per_s.value
    return _in_turn(costs, job, costs.h2d(streamed) + gathered, streamed)


def _in_turn(costs: CostModel, job: Job, fetch_s: float, nbytes: float) -> Phases:
    gpu = compute(costs, job)
    busy = Busy(fetch_s, gpu.decode_step_s, nbytes)
    return Phases(fetch_s + gpu.prefill_s, fetch_s + gpu.decode_step_s, busy)


def _head_bytes(costs: CostModel) -> int:
    return costs.model.vocab * costs.model.hidden * costs.model.element_bytes


def _memory(costs: CostModel, job: Job, on_gpu: float) -> Memory:
    """`on_gpu` bytes of weights, the whole cache and one prefill of all prompts; all weights on the host."""
    model = costs.model
    cache = job.tokens * model.layers * model.kv_bytes_per_token_layer
    rows = job.batch * job.prompt_len
    passing = model.element_bytes * (rows * model.hidden + workspace_elements(model, rows, job.batch))
    return Memory(on_gpu + cache + passing, model.weight_bytes)


def _forecast(
    name: str, costs: CostModel, workload: Workload, phases: Callable[[CostModel, Job], Phases], on_gpu: float,
    way: str,
) -> Forecast:  # fmt: skip
    job = Job.padded(workload)
    rounds = fewest_rounds(job, lambda part: _memory(costs, part, on_gpu).fits(costs.hardware))
    if rounds is None:
        cure = "Shorten the prompts, or choose a smaller model or a policy that keeps the cache in host memory"
        raise _memory(costs, job.in_rounds(job.batch), on_gpu).refusal(name, costs.hardware, cure)
    part = job.in_rounds(rounds)
    limits = f"{way}, and K and V on the GPU, which holds {part.batch} of {job.batch} requests at a time"
    return Forecast.of(
        name, workload, rounds, phases(costs, part), _memory(costs, part, on_gpu), limits=limits,
        settings=(in_rounds(rounds, f"up to {part.batch} requests"),),
    )  # fmt: skip


def deepspeed_forecast(costs: CostModel, workload: Workload) -> Forecast:
    """ZeRO-Inference with weights in pinned host memory. InfeasibleError where a single request does not fit."""
    largest = max(costs.model.layer_bytes, _head_bytes(costs))
    return _forecast(
        "deepspeed", costs, workload, zero_inference, 2 * largest, "transfers of weights that overlap no compute"
    )


def accelerate_forecast(costs: CostModel, workload: Workload) -> Forecast:
    """Accelerate's CPU offload. InfeasibleError where a single request does not fit."""
    model = costs.model
    outer = model.weight_bytes - model.layers * model.layer_bytes
    way = "weights that come from ordinary memory, a module at a time, where nothing overlaps"
    return _forecast("accelerate", costs, workload, accelerate, outer + model.layer_bytes, way)

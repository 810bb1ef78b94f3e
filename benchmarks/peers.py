"""ZeRO-Inference with attention on the CPU, which only a published figure needs."""

from __future__ import annotations

from planner.costs import CostModel
from planner.peers.job import Job, Phases, compute


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

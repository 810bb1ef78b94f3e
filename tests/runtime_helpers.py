"""Shared by the runtime tests: a small profile for either device, and transformers as the oracle for tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import OPTConfig, OPTForCausalLM

import hwprofiles
from planner.files import read_yaml, validate
from planner.forms import FORMS
from planner.hardware import HardwareProfile
from planner.model import ModelSpec
from planner.placement import MiniBatch
from planner.plan import Plan, record_waves
from planner.planning import make_plan
from planner.policies import POLICIES
from planner.search import Options
from planner.workload import Request, Workload
from runtime.layers.base import layers_for
from runtime.weights import RandomWeights

DEVICES = ("cpu", "cuda")


def small_profile(device: str, gpu_bytes: float) -> HardwareProfile:
    """A GPU with `gpu_bytes` for the plan, fp32 rates, and a link slow enough for the planner to weigh it."""
    data = read_yaml(hwprofiles.path_of("rtx4090-pcie4"), "hardware profile")
    curves = data["gpu"]["achieved"]["gemm_flops_by_rows"]
    curves["float32"] = dict(curves["float16"])
    data["id"] = f"small-{device}"
    data["gpu"]["device"] = device
    memory = data["gpu"]["memory"]
    reserve = memory["context_reserve_bytes"]["value"] if device == "cuda" else 1.0
    memory["context_reserve_bytes"] = {"value": reserve, "kind": "assumed", "source": "test"}
    memory["usable_bytes"] = {"value": gpu_bytes + reserve, "kind": "assumed", "source": "test"}
    return validate(HardwareProfile, data, "small profile")


def ragged(requests: int, gen_len: int, longest: int = 45) -> Workload:
    """Prompts of many lengths, some a whole number of blocks; generation lengths differ by up to two."""
    lengths = [1 + (7 * i + 15) % longest for i in range(requests)]
    return Workload(tuple(Request(str(i), n, gen_len + i % 3) for i, n in enumerate(lengths)))


def planned(
    model: ModelSpec,
    job: Workload,
    device: str = "cpu",
    gpu_bytes: float = 2.5e6,
    policy: str = "hybrid",
    **options: Any,
) -> Plan:
    """A plan for the small profile."""
    return make_plan(small_profile(device, gpu_bytes), model, job, POLICIES[policy], Options(**{"waves": 1, **options}))


def with_random_forms(plan: Plan, seed: int) -> Plan:
    """`plan` with every block of every request in a form drawn at random: harder than any solver's choice."""
    draw = random.Random(seed)
    batches = tuple(
        MiniBatch(
            tuple(
                replace(group, requests=(request,), blocks=tuple(draw.choice(FORMS) for _ in group.blocks))
                for group in mini_batch.groups
                for request in group.requests
            )
        )
        for mini_batch in plan.decisions.mini_batches
    )
    record = record_waves([replace(plan.decisions, mini_batches=batches)])
    data = plan.model_dump(by_alias=True)
    roomy = small_profile(plan.hardware.gpu.device, 1e8)
    return Plan.model_validate({**data, "decisions": record.model_dump(), "hardware": roomy.model_dump()})


def reference_model(model: ModelSpec, seed: int) -> OPTForCausalLM:
    """transformers' OPT with the weights that `RandomWeights(seed)` draws."""
    config = OPTConfig(
        vocab_size=model.vocab, hidden_size=model.hidden, num_hidden_layers=model.layers, ffn_dim=model.ffn,
        num_attention_heads=model.heads, max_position_embeddings=model.max_positions,
        word_embed_proj_dim=model.hidden, dropout=0.0, torch_dtype="float32",
    )  # fmt: skip
    reference = OPTForCausalLM(config).eval()
    layers, source, state = layers_for(model), RandomWeights(seed, torch.device("cpu")), reference.state_dict()
    for name, layer, shape in layers.tensors():
        drawn = torch.empty(shape)
        source.draw(name, layer, drawn)
        at = 0
        for part in layers.checkpoint_names(name, layer):
            state[part].copy_(drawn[at : at + len(state[part])])
            at += len(state[part])
    return reference


def greedy(reference: OPTForCausalLM, prompts: Sequence[Sequence[int]], job: Workload) -> list[list[int]]:
    """Greedy tokens of each prompt alone."""
    found = []
    with torch.inference_mode():
        for prompt, request in zip(prompts, job.requests, strict=True):
            ids = torch.tensor([list(prompt)])
            out = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.gen_len,
                min_new_tokens=request.gen_len, do_sample=False, eos_token_id=None, pad_token_id=1,
            )  # fmt: skip
            found.append(out[0, len(prompt) :].tolist())
    return found

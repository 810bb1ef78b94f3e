"""The engine's tokens are those of transformers, whatever the plan does with the cache and the weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from runtime_helpers import DEVICES, greedy, planned, ragged, reference_model, small_profile, with_random_forms

from planner.memory import resident_layers
from planner.model import load_model
from planner.plan import Plan
from planner.workload import Workload
from runtime.cpu_device import CpuDevice
from runtime.device import Device, open_device
from runtime.engine import Engine, Result, random_prompts
from runtime.weights import RandomWeights

MODEL = load_model("opt-tiny")
JOB = ragged(7, gen_len=64)
TIGHT, MIDDLE, AMPLE = 1.7e6, 2.6e6, 1e8
"""GPU bytes: slots and little more, some resident blocks and layers, everything resident."""


@pytest.fixture(params=[pytest.param(d, marks=pytest.mark.gpu) if d == "cuda" else d for d in DEVICES])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield request.param


def run(plan: Plan, kind: str, seed: int = 0, device: Device | None = None) -> Result:
    opened = device or (CpuDevice(None, None) if kind == "cpu" else open_device(plan.hardware))
    try:
        # Drawn on the CPU for either device, so that both get the reference's weights.
        return Engine(plan, opened, RandomWeights(seed, torch.device("cpu"))).run(random_prompts(plan, seed))
    finally:
        opened.close()


@cache
def expected(job: Workload, seed: int = 0) -> list[list[int]]:
    plan = planned(MODEL, job, gpu_bytes=AMPLE)
    return greedy(reference_model(MODEL, seed), random_prompts(plan, seed), job)


def check(kind: str, job: Workload = JOB, **plan_options: Any) -> Plan:
    plan = planned(MODEL, job, device=kind, **plan_options)
    result = run(plan, kind)
    assert result.tokens == expected(job)
    assert result.peak_bytes["gpu"] == plan.memory["gpu"].planned_bytes
    return plan


def test_reference_is_worth_matching() -> None:
    tokens = [t for request in expected(JOB) for t in request]
    assert len(set(tokens)) > 15, "nearly constant text would match by accident"
    assert min(len(request) for request in expected(JOB)) >= 64


@pytest.mark.parametrize("policy", ["hybrid", "kv-only", "act-only"])
@pytest.mark.parametrize("gpu_bytes", [TIGHT, MIDDLE, AMPLE])
def test_every_policy(kind: str, policy: str, gpu_bytes: float) -> None:
    check(kind, policy=policy, gpu_bytes=gpu_bytes)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("mini_batches", [1, 2, 3, 7])
def test_forced_act_share(kind: str, share: float, mini_batches: int) -> None:
    plan = check(kind, act_share=share, mini_batches=mini_batches, gpu_bytes=MIDDLE, max_resident_layers=0)
    assert len(plan.decisions.mini_batches) == mini_batches
    # 5 to 7 blocks for each of up to seven mini-batches, which are rounded each by itself: half a block is a tenth.
    assert plan.prediction.act_share == pytest.approx(share, abs=0.15)


@pytest.mark.parametrize("slots", [(1, 1, 1), (2, 3, 1), (3, 2, 2), (3, 4, 3), (4, 3, 2)])
def test_slot_counts_that_do_not_divide_the_layers(kind: str, slots: tuple[int, int, int]) -> None:
    weight, cached, store = slots
    assert MODEL.layers == 5
    options = {"weight_slots": weight, "cache_slots": cached, "store_slots": store, "mini_batches": 3}
    plan = check(kind, act_share=0.5, max_resident_layers=0, gpu_bytes=MIDDLE, **options)
    assert plan.decisions.weight_slots == weight


@pytest.mark.parametrize("resident", [1, 2, 3, 4])
def test_resident_weights(kind: str, resident: int) -> None:
    plan = check(kind, gpu_bytes=AMPLE, max_resident_layers=resident, mini_batches=2)
    assert resident_layers(MODEL, plan.decisions) == pytest.approx(resident, abs=0.34)


@pytest.mark.parametrize("seed", range(4))
def test_random_forms_of_every_block(kind: str, seed: int) -> None:
    plan = with_random_forms(planned(MODEL, JOB, device=kind, mini_batches=1 + seed, max_resident_layers=seed), seed)
    held = {f.name for b in plan.decisions.mini_batches for g in b.groups for f in g.blocks}
    assert held == {"act@gpu", "act@host", "kv@gpu", "kv@host"}
    assert run(plan, kind).tokens == expected(JOB)


@pytest.mark.parametrize("prompt_len, gen_len", [(1, 1), (1, 2), (16, 1), (16, 17), (15, 3), (48, 20)])
def test_lengths_at_block_edges(kind: str, prompt_len: int, gen_len: int) -> None:
    job = Workload.uniform(3, prompt_len, gen_len)
    check(kind, job, gpu_bytes=TIGHT, mini_batches=2, act_share=0.5)


@pytest.mark.parametrize("seed", range(6))
def test_random_delays_change_nothing(seed: int) -> None:
    """A missing wait shows as a wrong token when streams drift apart."""
    job = ragged(4, gen_len=12)
    plan = planned(MODEL, job, act_share=0.5, max_resident_layers=0, mini_batches=3, gpu_bytes=TIGHT)
    draw = random.Random(seed)
    slow = draw.choice(["h2d", "compute", "d2h"])

    def delay(stream: str) -> float:
        return draw.random() * (2e-3 if stream == slow else 2e-4)

    result = run(plan, "cpu", device=CpuDevice(None, None, delay))
    assert result.tokens == expected(job)


def test_a_run_can_be_repeated(kind: str) -> None:
    plan = planned(MODEL, ragged(4, gen_len=5), device=kind, gpu_bytes=TIGHT, act_share=0.5)
    device = CpuDevice.of(plan.hardware) if kind == "cpu" else open_device(plan.hardware)
    try:
        engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
        prompts = random_prompts(plan, 0)
        assert engine.run(prompts).tokens == engine.run(prompts).tokens
    finally:
        device.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_half_precision_on_the_gpu_is_close(share: float) -> None:
    """fp16 may flip a token where two are nearly as likely: most of the first ones must agree with fp32."""
    job = ragged(6, gen_len=8)
    half = MODEL.model_copy(update={"dtype": "float16"})
    plan = planned(half, job, device="cuda", gpu_bytes=MIDDLE, act_share=share)
    result = run(plan, "cuda")
    agree = [
        a == b for x, y in zip(result.tokens, expected(job), strict=True) for a, b in list(zip(x, y, strict=True))[:3]
    ]
    assert sum(agree) >= 0.8 * len(agree)


def test_small_profile_is_roomy_enough() -> None:
    assert small_profile("cpu", TIGHT).gpu.budget_bytes == int(TIGHT)

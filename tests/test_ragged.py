"""One attention call per form for requests of all lengths: the same tokens and the same sums as one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runtime_helpers import greedy, planned, ragged, reference_model, with_random_forms

from planner.forms import KV_GPU
from planner.model import load_model
from planner.plan import Plan
from planner.workload import Workload
from runtime import ragged as kernels
from runtime.attention import merge
from runtime.cpu_device import CpuDevice
from runtime.engine import Engine, random_prompts
from runtime.ragged import RaggedStep, Segments, attend_ragged, merge_at_once
from runtime.weights import RandomWeights

MODEL = load_model("opt-tiny")
JOB = ragged(7, gen_len=40)


class RaggedCpu(CpuDevice):
    """The CPU, run as a device whose kernels take sequences of many lengths."""

    ragged = True


def tokens_of(plan: Plan) -> list[list[int]]:
    device = RaggedCpu(None, None)
    try:
        engine = Engine(plan, device, RandomWeights(0, torch.device("cpu")))
        return engine.run(random_prompts(plan, 0)).tokens
    finally:
        device.close()


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    plan = planned(MODEL, JOB, gpu_bytes=1e8)
    return greedy(reference_model(MODEL, 0), random_prompts(plan, 0), JOB)


@pytest.mark.parametrize("policy", ["hybrid", "kv-only", "act-only"])
@pytest.mark.parametrize("gpu_bytes", [1.7e6, 2.6e6, 1e8])
def test_tokens_for_every_policy(policy: str, gpu_bytes: float, expected: list[list[int]]) -> None:
    assert tokens_of(planned(MODEL, JOB, policy=policy, gpu_bytes=gpu_bytes)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_tokens_with_every_block_in_a_form_of_its_own(seed: int, expected: list[list[int]]) -> None:
    """Rows without tokens in a form, and new tokens that go to all four."""
    plan = planned(MODEL, JOB, mini_batches=1 + seed % 3, max_resident_layers=0)
    assert tokens_of(with_random_forms(plan, seed)) == expected


def test_a_form_that_only_some_requests_have() -> None:
    """Attention of grouped heads against the softmax written out, with one row that has nothing in the segment."""
    model = MODEL.model_copy(update={"heads": 4, "kv_heads": 2, "head_dim": 8})
    generator = torch.Generator().manual_seed(1)
    lengths, starts = [3, 5], [2, 7]
    pool = torch.randn(20, 2 * model.d_kv, generator=generator)
    query = torch.randn(3, model.d_q, generator=generator)
    new_kv = torch.randn(3, 2 * model.d_kv, generator=generator)
    rows = torch.tensor([0, 2])
    segments = Segments(
        rows, torch.tensor([*starts, 12], dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32), 5
    )
    found = attend_ragged(model, query, new_kv, RaggedStep({KV_GPU: segments}, {}), {KV_GPU: pool})
    for row, cached in ((0, pool[2:5]), (1, pool[:0]), (2, pool[7:12])):
        kv = torch.cat([cached, new_kv[row : row + 1]]).view(-1, 2, 2, 8)
        for head in range(4):
            scores = kv[:, 0, head // 2] @ query[row].view(4, 8)[head] / 8**0.5
            wanted = torch.softmax(scores, 0) @ kv[:, 1, head // 2]
            assert torch.allclose(found[row].view(4, 8)[head], wanted, atol=1e-5)


def test_merging_at_once_is_merging_one_by_one() -> None:
    generator = torch.Generator().manual_seed(2)
    outs = [torch.randn(3, 2, 2, 8, generator=generator) for _ in range(3)]
    stats = [torch.randn(3, 2, 2, generator=generator) for _ in range(3)]
    one_by_one = torch.empty_like(outs[0])
    merge(list(zip(outs, stats, strict=True)), one_by_one)
    assert torch.allclose(merge_at_once(outs, stats), one_by_one, atol=1e-6)


def test_plans_of_cuda_cards_count_on_it() -> None:
    """A profile says by its device what the engine does there."""
    job = Workload.uniform(4, 20, 8)
    on_cpu, on_card = planned(MODEL, job, device="cpu").hardware.gpu, planned(MODEL, job, device="cuda").hardware.gpu
    assert (on_cpu.ragged_attention, on_card.ragged_attention) == (CpuDevice.ragged, True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", ["_attend", "_efficient"])
def test_the_kernels_of_the_card_say_what_the_cpu_says(dtype: torch.dtype, kernel: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(64, 2, 64, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(3, 2, 2, 64, generator=generator).to(dtype)
    segments = Segments(
        None, torch.tensor([4, 10, 30, 63], dtype=torch.int32), torch.tensor([5, 17, 33], dtype=torch.int32), 33
    )
    there = replace(segments, starts=segments.starts.cuda(), used=segments.used.cuda())
    out, lse = getattr(kernels, kernel)(query.cuda(), keys.cuda(), values.cuda(), there)
    wanted, stats = kernels._one_by_one(query.float(), keys.float(), values.float(), segments)
    assert torch.allclose(out.cpu().float(), wanted, atol=2e-2)
    assert torch.allclose(lse.cpu(), stats, atol=2e-2)

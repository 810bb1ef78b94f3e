"""Sampling: against transformers' own warpers, by statistics, and independent of who shares the mini-batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from family_helpers import build, save
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_helpers import planned, ragged
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from planner.model import load_model
from runtime.choice import choose
from runtime.cpu_device import CpuDevice
from runtime.engine import random_prompts
from runtime.execution import execute
from runtime.sampling import Sampling

VOCAB = 37


def warped(logits: torch.Tensor, way: Sampling) -> torch.Tensor:
    """Chances of every token as transformers computes them."""
    scores = TemperatureLogitsWarper(way.temperature)(None, logits)  # type: ignore[arg-type]
    if way.top_k:
        scores = TopKLogitsWarper(way.top_k)(None, scores)  # type: ignore[arg-type]
    if way.top_p < 1:
        scores = TopPLogitsWarper(way.top_p)(None, scores)  # type: ignore[arg-type]
    return torch.softmax(scores, -1)


@given(
    st.integers(0, 2**30), st.sampled_from([0.3, 0.7, 1.0, 2.0]), st.sampled_from([0, 1, 3, 36, 500]),
    st.sampled_from([1.0, 0.95, 0.5, 0.05]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_draw_is_the_inverse_of_transformers_chances(seed: int, heat: float, k: int, p: float) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    way = Sampling(heat, k, p, seed)
    chances = warped(logits, way)[0]
    for index in range(5):
        token = int(choose(logits, [way], index))
        assert chances[token] > 0
        likelier = chances[chances > chances[token]].sum()
        slack = 1e-4
        assert likelier - slack <= way.draw(index) <= 1 - chances[chances < chances[token]].sum() + slack


def test_frequencies_are_the_chances() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    found = Counter(int(choose(logits, [Sampling(1.0, seed=7)], index)) for index in range(4000))
    assert [found[i] / 4000 for i in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.025)
    kept = {int(choose(logits, [Sampling(1.0, top_p=0.8, seed=7)], index)) for index in range(300)}
    assert kept == {0, 1}
    assert {int(choose(logits, [Sampling(1.0, top_k=3, seed=7)], index)) for index in range(300)} == {0, 1, 2}


def test_rows_choose_each_in_their_own_way() -> None:
    logits = torch.randn(20, VOCAB, generator=torch.Generator().manual_seed(1))
    ways = [Sampling(0.0) if i % 3 == 0 else Sampling(1.2, top_k=5 + i, seed=i) for i in range(20)]
    together = choose(logits, ways, 4)
    assert together.tolist() == [int(choose(logits[i : i + 1], [way], 4)) for i, way in enumerate(ways)]
    assert together[::3].tolist() == logits.argmax(-1)[::3].tolist()


def test_draws_go_on_where_an_earlier_run_stopped() -> None:
    whole = [Sampling(1.0, seed=3).draw(i) for i in range(10)]
    assert [Sampling(1.0, seed=3, first=6).draw(i) for i in range(4)] == whole[6:]
    assert len(set(whole)) == 10
    assert Sampling(1.0, seed=4).draw(0) != whole[0]


def test_tokens_do_not_depend_on_policy_or_mini_batches(tmp_path: Path) -> None:
    folder = save(build("llama"), tmp_path / "model")
    model, job = load_model(str(folder)), ragged(6, gen_len=12)
    ways = [Sampling(0.0 if i == 2 else 0.9, top_p=0.9, seed=i) for i in range(6)]
    found = []
    for policy, count in (("hybrid", 1), ("kv-only", 3), ("act-only", 2)):
        plan = planned(model, job, policy=policy, mini_batches=count)
        run = execute(plan, random_prompts(plan, 0), folder, device=CpuDevice(None, None), ways=ways)
        found.append(run.tokens)
    assert found[0] == found[1] == found[2]
    plan = planned(model, job)
    greedy = execute(plan, random_prompts(plan, 0), folder, device=CpuDevice(None, None)).tokens
    assert found[0][2] == greedy[2] and found[0] != greedy

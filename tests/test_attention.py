"""Segments attended apart and merged are one softmax over all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.attention import attend_prompt, attend_segment, attend_self, merge


def reference(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Plain softmax attention in fp64."""
    q, k, v = query.double(), keys.double(), values.double()
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).float()


@settings(deadline=None, max_examples=40)
@given(
    requests=st.integers(1, 3), kv_heads=st.sampled_from([1, 2, 4]), group=st.sampled_from([1, 2, 4]),
    sizes=st.lists(st.integers(1, 40), max_size=4), scale=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_merge_is_one_softmax(
    requests: int, kv_heads: int, group: int, sizes: list[int], scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    head_dim = 16
    query = torch.randn(requests, kv_heads, group, head_dim) * scale
    # Rows strided as in the slots: K and V of a token side by side.
    segments = [torch.randn(requests, n + 3, 2, kv_heads, head_dim)[:, :n] for n in sizes]
    new = torch.randn(requests, 1, 2, kv_heads, head_dim)
    parts = [attend_self(query, *(x.transpose(1, 2) for x in new.unbind(2)))]
    parts += [attend_segment(query, *(x.transpose(1, 2) for x in s.unbind(2))) for s in segments]
    whole = torch.cat([new, *segments], dim=1)
    expected = reference(query, *(x.transpose(1, 2) for x in whole.unbind(2)))
    merged = torch.empty_like(query)
    merge(parts, merged)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_prompt_attention_is_causal(kv_heads: int) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 9, 4, 8), torch.randn(2, 9, kv_heads, 8), torch.randn(2, 9, kv_heads, 8)
    out = attend_prompt(query, keys, values).unflatten(2, (4, 8))
    for t in range(9):
        k = keys[:, : t + 1].repeat_interleave(4 // kv_heads, dim=2).transpose(1, 2)
        v = values[:, : t + 1].repeat_interleave(4 // kv_heads, dim=2).transpose(1, 2)
        expected = reference(query[:, t : t + 1].transpose(1, 2), k, v).transpose(1, 2)[:, 0]
        torch.testing.assert_close(out[:, t], expected, rtol=1e-4, atol=1e-5)

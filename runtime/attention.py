"""Attention over segments: each part of the cache is attended where it lies, and the parts are merged exactly.

A segment gives an output and the log-sum-exp of its scores; the softmax over all segments together is the average of
the outputs weighted by exp(log-sum-exp). So staged, rebuilt and resident K and V need never be gathered in one place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_aten = torch.ops.aten


def attend_segment(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query attends to all `n` tokens of one segment.

    query [R, kv_heads, group, head_dim]; keys, values [R, kv_heads, n, head_dim], rows may be strided.
    Returns the output, as query, and the log-sum-exp in fp32, [R, kv_heads, group].
    """
    if query.device.type == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values)
        return out, lse
    if query.dtype == torch.float32:  # the flash kernel knows half precision only
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(query, keys, values, None, True)
    else:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(query, keys, values)
    return out, lse[..., : query.shape[2]]  # this kernel pads the statistics to a multiple of 32


def attend_self(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The segment that is the new token itself. key, value [R, kv_heads, 1, head_dim]."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    lse = (query.float() * key.float()).sum(-1) * scale
    return value.expand_as(query), lse


def merge(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Softmax over all segments together, in fp32; returned in the dtype of the outputs."""
    if len(parts) == 1:
        return parts[0][0]
    top = torch.stack([lse for _, lse in parts]).amax(0)
    total = torch.zeros_like(top)
    out = torch.zeros(parts[0][0].shape, dtype=torch.float32, device=top.device)
    for segment, lse in parts:
        weight = torch.exp(lse - top)
        total += weight
        out += segment.float() * weight.unsqueeze(-1)
    return (out / total.unsqueeze(-1)).to(parts[0][0].dtype)


def attend_prompt(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention within prompts of equal length.

    query [R, p, heads, head_dim]; keys, values [R, p, kv_heads, head_dim]. Returns [R, p, heads * head_dim].
    """
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        is_causal=True,
        enable_gqa=query.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2).flatten(2)

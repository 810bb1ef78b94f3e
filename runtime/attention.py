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
    lse = (query.float() * key.float()).sum(-1).mul_(1.0 / math.sqrt(query.shape[-1]))
    return value.expand_as(query), lse


def joined(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One segment of requests that were attended to apart."""
    return torch.cat([out for out, _ in rows]), torch.cat([lse for _, lse in rows])


def merge(parts: list[tuple[torch.Tensor, torch.Tensor]], into: torch.Tensor) -> None:
    """Softmax over all segments together, in fp32, into a tensor of the outputs' shape and dtype."""
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0).unsqueeze(-1)
    exact = into.dtype == torch.float32
    total = into if exact else torch.empty(into.shape, dtype=torch.float32, device=into.device)
    torch.mul(parts[0][0], weights[0], out=total)
    for (segment, _), weight in zip(parts[1:], weights[1:], strict=True):
        total.addcmul_(segment.float(), weight)
    if not exact:
        into.copy_(total)


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

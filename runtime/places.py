"""Where the tokens of one decode step stand in their requests: what rotary positions need to know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from planner.forms import ACT_GPU, ACT_HOST, BLOCK_TOKENS, CacheForm
from runtime.batch import GroupStep, StepView


@dataclass(frozen=True)
class Places:
    """Positions of one step of one mini-batch, made once for all layers."""

    newest: torch.Tensor
    """[rows] of the tokens that the step feeds."""
    rebuilt: torch.Tensor
    """[tokens] of what is rebuilt from activations, as it lies: staged ones, then those on the GPU."""

    @classmethod
    def of(cls, view: StepView, newest: torch.Tensor, last: int) -> Places:
        """`last`: the last position that the table knows; what pads a block beyond it is never read."""
        parts = [_positions(group, form) for form in (ACT_HOST, ACT_GPU) for group in view.groups]
        found = torch.from_numpy(np.minimum(np.concatenate(parts), last))
        if newest.device.type == "cuda":  # in the order of the current stream, without waiting for it
            found = found.pin_memory().to(newest.device, non_blocking=True)
        return cls(newest, found)


def _positions(group: GroupStep, form: CacheForm) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of the whole blocks of `form`, request after request."""
    blocks = [i for i, one in enumerate(group.cache.group.blocks) if one is form][: group.blocks(form)]
    one = (BLOCK_TOKENS * np.array(blocks, np.int64)[:, None] + np.arange(BLOCK_TOKENS)).ravel()
    return np.tile(one, group.rows)

"""Token ids of every request, prompt and generated, on the device: nothing leaves it between steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planner.decisions import Decisions, PrefillChunk
from planner.workload import Workload
from runtime.arena import Arena


class Tokens:
    """One row of ids per request, one after the other: the prompt, then what is generated."""

    def __init__(self, workload: Workload, decisions: Decisions, gpu: Arena, device: torch.device) -> None:
        self.workload, self.decisions, self.device = workload, decisions, device
        lengths = [r.prompt_len + r.gen_len for r in workload.requests]
        self._starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.ids = gpu.carve("token ids", (sum(lengths),), torch.int64)
        self._rows: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def set_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Token ids of every prompt, in the order of the workload."""
        for start, prompt in zip(self._starts, prompts, strict=True):
            self.ids[start : start + len(prompt)] = torch.tensor(prompt, dtype=torch.int64, device=self.device)

    def generated(self) -> list[list[int]]:
        """What was generated, in the order of the workload. After the run."""
        ids = self.ids.tolist()
        return [
            ids[start + r.prompt_len : start + r.prompt_len + r.gen_len]
            for start, r in zip(self._starts, self.workload.requests, strict=True)
        ]

    def prompts(self, chunk: PrefillChunk) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions of a chunk's prompts, concatenated in the order of their groups."""
        spans = [(self._starts[r], self.workload.requests[r].prompt_len) for r in self._ordered(chunk)]
        ids = torch.cat([self.ids[start : start + n] for start, n in spans])
        return ids, torch.cat([torch.arange(n, device=self.device) for _, n in spans])

    def choose_first(self, chunk: PrefillChunk, logits: torch.Tensor) -> None:
        """Greedy first tokens of a chunk's requests."""
        requests = self._ordered(chunk)
        at = [self._starts[r] + self.workload.requests[r].prompt_len for r in requests]
        self.ids[torch.tensor(at, device=self.device)] = logits.argmax(-1)

    def newest(self, mini_batch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions that decode step `step` feeds, in row order."""
        starts, prompts = self._active(mini_batch, step)
        positions = prompts + (step - 1)
        return self.ids[starts + positions], positions

    def choose(self, mini_batch: int, step: int, logits: torch.Tensor) -> None:
        """Greedy next tokens, in row order."""
        starts, prompts = self._active(mini_batch, step)
        self.ids[starts + prompts + step] = logits.argmax(-1)

    def _ordered(self, chunk: PrefillChunk) -> list[int]:
        wanted = set(chunk.requests)
        return [r for r in self.decisions.mini_batches[chunk.mini_batch].requests if r in wanted]

    def _active(self, mini_batch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Starts and prompt lengths of the requests still generating; made anew only when one ends."""
        groups = [g for g in self.decisions.mini_batches[mini_batch].groups if g.decode_steps >= step]
        key = (mini_batch, len(groups))
        if key not in self._rows:
            requests = [r for group in groups for r in group.requests]
            starts = torch.tensor([self._starts[r] for r in requests], device=self.device)
            prompts = torch.tensor([self.workload.requests[r].prompt_len for r in requests], device=self.device)
            self._rows[key] = (starts, prompts)
        return self._rows[key]

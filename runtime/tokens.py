"""Token ids of every request, prompt and generated, on the device: nothing leaves it between steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planner.decisions import Decisions, PrefillChunk
from planner.workload import Workload
from runtime.arena import Arena


class Tokens:
    """One row of ids per request of a wave, one after the other: the prompt, then what is generated."""

    def __init__(self, workload: Workload, decisions: Decisions, gpu: Arena, device: torch.device) -> None:
        self.workload, self.decisions, self.device = workload, decisions, device
        self._starts: dict[int, int] = {}
        end = 0
        for request in sorted(r for mini_batch in decisions.mini_batches for r in mini_batch.requests):
            self._starts[request] = end
            end += workload.requests[request].prompt_len + workload.requests[request].gen_len
        self.ids = gpu.carve("token ids", (end,), torch.int64)
        self._rows: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def set_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Token ids of the prompts, from those of the whole workload in its order."""
        for request, start in self._starts.items():
            prompt = torch.tensor(prompts[request], dtype=torch.int64, device=self.device)
            self.ids[start : start + len(prompt)] = prompt

    def generated(self) -> dict[int, list[int]]:
        """What was generated, by request. After the run."""
        ids, requests = self.ids.tolist(), self.workload.requests
        return {
            r: ids[start + requests[r].prompt_len : start + requests[r].prompt_len + requests[r].gen_len]
            for r, start in self._starts.items()
        }

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

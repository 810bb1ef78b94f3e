"""Token ids of every request, prompt and generated, on the device: nothing leaves it between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planner.decisions import Decisions, PrefillChunk
from planner.workload import Workload
from runtime.arena import Arena
from runtime.batch import StepView
from runtime.choice import choose
from runtime.device import on_device
from runtime.sampling import Sampling


@dataclass(frozen=True)
class _Rows:
    """Where the ids of requests begin, in row order, and the lengths of their prompts."""

    starts: torch.Tensor
    prompts: torch.Tensor


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
        self._rows: dict[tuple[int, ...], _Rows] = {}
        self._ways: Sequence[Sampling] | None = None

    def set_prompts(self, prompts: Sequence[Sequence[int]], ways: Sequence[Sampling] | None = None) -> None:
        """Token ids of the prompts, and how to choose what follows (None: greedily), of the whole workload in order."""
        self._ways = ways if ways and any(way.temperature > 0 for way in ways) else None
        for request, start in self._starts.items():
            prompt = torch.tensor(prompts[request], dtype=torch.int64, device=self.device)
            self.ids[start : start + len(prompt)] = prompt

    def chosen(self, requests: Sequence[int], index: int) -> list[int]:
        """The `index`-th token that each of `requests` generated, counted from 0; once it is there."""
        at = [self._starts[r] + self.workload.requests[r].prompt_len + index for r in requests]
        found: list[int] = self.ids[self._on_device(at)].tolist()
        return found

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
        return ids, self.prompt_positions(chunk)

    def choose_first(self, chunk: PrefillChunk, logits: torch.Tensor) -> None:
        """The first tokens of a chunk's requests."""
        requests = self._ordered(chunk)
        at = [self._starts[r] + self.workload.requests[r].prompt_len for r in requests]
        self.ids[self._on_device(at)] = self._chosen(logits, requests, 0)

    def newest(self, view: StepView) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and positions that a decode step feeds, in row order."""
        positions = self.positions(view)
        return self.ids.index_select(0, self._active(view).starts + positions), positions

    def positions(self, view: StepView) -> torch.Tensor:
        """Where the tokens stand that a decode step feeds, in row order."""
        return self._active(view).prompts + (view.step - 1)

    def prompt_positions(self, chunk: PrefillChunk) -> torch.Tensor:
        """Where the tokens of a chunk's prompts stand, in the order of their groups."""
        lengths = (self.workload.requests[r].prompt_len for r in self._ordered(chunk))
        return torch.cat([torch.arange(n, device=self.device) for n in lengths])

    def choose(self, view: StepView, logits: torch.Tensor) -> None:
        """The next tokens, in row order."""
        rows = self._active(view)
        self.ids[rows.starts + rows.prompts + view.step] = self._chosen(logits, view.requests, view.step)

    def _chosen(self, logits: torch.Tensor, requests: Sequence[int], index: int) -> torch.Tensor:
        if self._ways is None:
            return logits.argmax(-1)
        return choose(logits, [self._ways[r] for r in requests], index)

    def _ordered(self, chunk: PrefillChunk) -> list[int]:
        wanted = set(chunk.requests)
        return [r for r in self.decisions.mini_batches[chunk.mini_batch].requests if r in wanted]

    def _active(self, view: StepView) -> _Rows:
        """Of the requests that take part; made anew only when one ends."""
        if view.requests not in self._rows:
            starts = [self._starts[r] for r in view.requests]
            prompts = [self.workload.requests[r].prompt_len for r in view.requests]
            self._rows[view.requests] = _Rows(self._on_device(starts), self._on_device(prompts))
        return self._rows[view.requests]

    def _on_device(self, values: Sequence[int]) -> torch.Tensor:
        return on_device(values, torch.int64, self.device)

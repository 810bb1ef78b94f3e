"""How the next token of a request is chosen. Imports no torch: prompts are read where nothing runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """As OpenAI and transformers name it; the order is temperature, then top_k, then top_p."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    seed: int = 0
    first: int = 0
    """Tokens of the request that an earlier run generated: draws go on from there."""

    def draw(self, index: int) -> float:
        """In [0, 1), for the `index`-th token that this run generates: the same on every machine and in every batch."""
        stream = np.random.Philox(key=self.seed, counter=self.first + index)
        return float(np.random.Generator(stream).random())

"""Cache forms as a table: where a cached token lives and what it costs on every resource.

The ILP, the memory budget, the schedule and the engine read this table. A new form is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.model import ModelSpec

BLOCK_TOKENS = 16
"""A cached block: 16 tokens of one request, across all layers, in one form."""


@dataclass(frozen=True, eq=False)
class CacheForm:
    """One row. All sizes are per cached token and per layer. Each is one object, so that comparing costs nothing."""

    name: str
    content: Literal["kv", "act"]
    """`act` keeps the normalised layer input, exactly what W_K and W_V multiply; K and V are rebuilt from it."""
    place: Literal["gpu", "host"]

    @property
    def on_gpu(self) -> bool:
        return self.place == "gpu"

    @property
    def rebuilt(self) -> bool:
        """True when every decode step spends 4 d d_kv FLOP a token on rebuilding K and V."""
        return self.content == "act"

    def width(self, model: ModelSpec) -> int:
        """Elements kept per token and layer: 2 d_kv for K and V, d for the activation."""
        return model.hidden if self.content == "act" else 2 * model.d_kv

    def token_bytes(self, model: ModelSpec) -> int:
        """Bytes kept per token and layer."""
        return self.width(model) * model.element_bytes

    def block_bytes(self, model: ModelSpec) -> int:
        """Bytes of one block across all layers."""
        return BLOCK_TOKENS * model.layers * self.token_bytes(model)

    def __reduce__(self) -> tuple[object, ...]:
        return form_named, (self.name,)

    def h2d_bytes(self, model: ModelSpec) -> int:
        """Bytes that cross to the GPU per token, layer and decode step."""
        return 0 if self.on_gpu else self.token_bytes(model)


ACT_GPU = CacheForm("act@gpu", "act", "gpu")
ACT_HOST = CacheForm("act@host", "act", "host")
KV_GPU = CacheForm("kv@gpu", "kv", "gpu")
KV_HOST = CacheForm("kv@host", "kv", "host")
FORMS: tuple[CacheForm, ...] = (ACT_GPU, ACT_HOST, KV_GPU, KV_HOST)
"""In the order in which the blocks of a prompt are laid out."""
FORM_BY_NAME = {form.name: form for form in FORMS}


def form_named(name: str) -> CacheForm:
    """The form of that name."""
    return FORM_BY_NAME[name]


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)

"""What a model family gives the engine: where its weights lie, and one method per operation that is priced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import torch

from planner.errors import RunError
from planner.model import ModelSpec

if TYPE_CHECKING:
    from runtime.layers.rotary import Rotary

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]


class Workspace:
    """Scratch carved anew by every operation. One stream uses it, so nothing is in flight when it is carved."""

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat, self.used = flat, 0

    def reset(self) -> None:
        self.used = 0

    @property
    def left(self) -> int:
        """Elements that are still free."""
        return len(self.flat) - self.used

    def take(self, *shape: int) -> torch.Tensor:
        """An uninitialised tensor of the model's dtype."""
        size = prod(shape)
        view = self.flat[self.used : self.used + size].view(shape)
        self.used += size
        return view


def views(flat: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Named tensors laid one after the other in `flat`."""
    found, at = {}, 0
    for name, shape in shapes.items():
        size = prod(shape)
        found[name] = flat[at : at + size].view(shape)
        at += size
    return found


def linear(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x [n, in] times weight [out, in] transposed, plus bias, into `out` [n, out]."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


class Layers(ABC):
    """The arithmetic of one model family. Weights come as named views, so a layer may lie in any slot."""

    ACTIVATION = "relu"
    """The only one that the family is executed with."""

    rotary: Rotary
    """Where the model has rotary positions: set by the wave whose positions it holds."""

    def __init__(self, model: ModelSpec) -> None:
        self.model = model

    @abstractmethod
    def layer_shapes(self) -> Shapes:
        """Tensors of one decoder layer in slab order; Q, K and V fused as `qkv`, [d_q + 2 d_kv, d]."""

    @abstractmethod
    def outer_shapes(self) -> Shapes:
        """Tensors outside the layers, in slab order."""

    @abstractmethod
    def checkpoint_names(self, tensor: str, layer: int | None) -> list[str]:
        """The checkpoint tensors that make up `tensor`, stacked along the first axis."""

    @abstractmethod
    def embed(self, w: Weights, tokens: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
        """Hidden state of `tokens` [n] at `positions` [n] into out [n, d]."""

    @abstractmethod
    def normed(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        """The normalised layer input [n, d]: what W_Q, W_K and W_V multiply, and what an ACT block keeps."""

    def project_qkv(self, w: Weights, normed: torch.Tensor, space: Workspace) -> torch.Tensor:
        """Fused Q, K and V, [n, d_q + 2 d_kv]."""
        weight = w["qkv.weight"]
        return linear(weight, w.get("qkv.bias"), normed, space.take(len(normed), len(weight)))

    def project_kv(self, w: Weights, act: torch.Tensor, out: torch.Tensor) -> None:
        """[K V] = A [W_K W_V] for kept activations `act` [n, d], into out [n, 2 d_kv]."""
        bias, first = w.get("qkv.bias"), self.model.d_q
        linear(w["qkv.weight"][first:], None if bias is None else bias[first:], act, out)

    @abstractmethod
    def place_qkv(self, w: Weights, qkv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        """Norm and turn the queries and keys of a fused projection, in place, as they stand at `positions` [n]."""

    @abstractmethod
    def place_keys(self, w: Weights, kv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        """The same for the keys in `kv` [n, 2 d_kv] that were rebuilt from activations."""

    @abstractmethod
    def finish(self, w: Weights, hidden: torch.Tensor, attended: torch.Tensor, space: Workspace) -> None:
        """Output projection, feed-forward and residuals, into `hidden` [n, d] in place."""

    @abstractmethod
    def logits(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        """Final norm and head of the last tokens, [n, d] to [n, vocab]."""

    def split_qkv(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views Q [n, d_q] and K and V [n, 2 d_kv] of a fused projection."""
        return qkv[:, : self.model.d_q], qkv[:, self.model.d_q :]

    def tensors(self) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
        """(name, layer, shape) of every tensor of the model."""
        for name, shape in self.outer_shapes().items():
            yield name, None, shape
        for layer in range(self.model.layers):
            for name, shape in self.layer_shapes().items():
                yield name, layer, shape


def layers_for(model: ModelSpec) -> Layers:
    """The layers of a model's family; RunError where this runtime would compute it wrongly."""
    from runtime.layers.llama import LlamaLayers  # noqa: PLC0415
    from runtime.layers.opt import OptLayers  # noqa: PLC0415

    kind = OptLayers if model.family == "opt" else LlamaLayers
    if model.activation != kind.ACTIVATION:
        what = f"{model.name} has activation '{model.activation}', so it can be planned and simulated only"
        raise RunError(f"this runtime executes {model.family} with activation '{kind.ACTIVATION}'; {what}")
    return kind(model)

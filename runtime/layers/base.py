"""What a model family gives the engine: where its weights lie, and one method per operation that is priced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod

import torch

from planner.model import ModelSpec

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]


class Workspace:
    """Scratch carved anew by every operation. One stream uses it, so nothing is in flight when it is carved."""

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat, self._used = flat, 0

    def reset(self) -> None:
        self._used = 0

    def take(self, *shape: int) -> torch.Tensor:
        """An uninitialised tensor of the model's dtype."""
        size = prod(shape)
        view = self.flat[self._used : self._used + size].view(shape)
        self._used += size
        return view


def views(flat: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Named tensors laid one after the other in `flat`."""
    found, at = {}, 0
    for name, shape in shapes.items():
        size = prod(shape)
        found[name] = flat[at : at + size].view(shape)
        at += size
    return found


class Layers(ABC):
    """The arithmetic of one model family. Weights come as named views, so a layer may lie in any slot."""

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

    @abstractmethod
    def project_qkv(self, w: Weights, normed: torch.Tensor, space: Workspace) -> torch.Tensor:
        """Fused Q, K and V, [n, d_q + 2 d_kv]."""

    @abstractmethod
    def project_kv(self, w: Weights, act: torch.Tensor, out: torch.Tensor) -> None:
        """[K V] = A [W_K W_V] for kept activations `act` [n, d], into out [n, 2 d_kv]."""

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
    """The layers of a model's family; RunError when this runtime has none yet."""
    from planner.errors import RunError  # noqa: PLC0415
    from runtime.layers.opt import OptLayers  # noqa: PLC0415

    only, otherwise = "this runtime executes the OPT family", "can be planned and simulated only"
    if model.family != "opt":
        raise RunError(f"{only}; {model.name} ({model.family}) {otherwise}")
    if model.activation != "relu":
        what = f"{model.name} has activation_function '{model.activation}', so it {otherwise}"
        raise RunError(f"{only} with activation_function 'relu'; {what}")
    return OptLayers(model)

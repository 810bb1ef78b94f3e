"""Weights: from a safetensors checkpoint or a seed, straight into the slabs in which they will live."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from planner.errors import InputError
from planner.files import read_text
from planner.model import ModelSpec
from runtime.layers.base import Layers

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Home(NamedTuple):
    """Where a tensor of the model will live; `layer` is None outside the layers."""

    name: str
    layer: int | None
    into: torch.Tensor


class Source(Protocol):
    """Fills the tensors of the model, wherever they lie, in the order that suits it."""

    def fill(self, homes: Sequence[Home]) -> None: ...


class RandomWeights:
    """Seeded normal weights, each tensor's values independent of what else is drawn, norms near one.

    Matrices are scaled to their width, embeddings are small beside them: what a layer adds then outweighs the token
    it came from, and generated text does not fall into repeating one token.
    """

    EMBEDDING_SPREAD = 0.02
    VECTOR_SPREAD = 0.1
    GAIN = 1.5

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def fill(self, homes: Sequence[Home]) -> None:
        for home in homes:
            self.draw(*home)

    def draw(self, name: str, layer: int | None, into: torch.Tensor) -> None:
        """One tensor."""
        # A tensor's own seed: its values do not depend on the order of filling or on residency.
        own = hash_seed(f"{self.seed}/{layer}/{name}")
        generator = torch.Generator(self.device).manual_seed(own)
        draw = torch.randn(into.shape, generator=generator, device=self.device, dtype=torch.float32)
        draw *= self._spread(layer, into)
        if "norm" in name and name.endswith("weight"):
            draw += 1.0
        into.copy_(draw.to(into.dtype))

    def _spread(self, layer: int | None, into: torch.Tensor) -> float:
        if into.dim() < 2:
            return self.VECTOR_SPREAD
        return self.EMBEDDING_SPREAD if layer is None else float(self.GAIN / into.shape[1] ** 0.5)


def hash_seed(text: str) -> int:
    """A stable 63-bit seed from text (Python's own hash differs from process to process)."""
    value = 1469598103934665603
    for byte in text.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value >> 1


class Checkpoint:
    """A Hugging Face folder of safetensors, whole or sharded. InputError names what does not fit."""

    def __init__(self, folder: Path, layers: Layers) -> None:
        self.folder, self.layers = folder, layers
        self._shards = _shards(folder)
        self._open: dict[str, Any] = {}
        self._check()

    def fill(self, homes: Sequence[Home]) -> None:
        """Shard by shard: what has been read of a file counts as memory of this process until the file is closed, so
        no more than one is open at a time."""
        parts: dict[str, list[tuple[str, torch.Tensor]]] = {}
        for home in homes:
            at = 0
            for part in self._names(home.name, home.layer):
                rows = int(self._slice(part).get_shape()[0])
                parts.setdefault(self._shards[part], []).append((part, home.into[at : at + rows]))
                at += rows
        self._open.clear()
        for shard, of_shard in parts.items():
            for part, into in of_shard:
                into.copy_(self._tensor(part))
            self._open.pop(shard)

    def _names(self, name: str, layer: int | None) -> list[str]:
        found = []
        for part in self.layers.checkpoint_names(name, layer):
            bare = part.removeprefix("model.")  # checkpoints of the bare decoder lack the outer prefix
            found.append(bare if bare in self._shards and part not in self._shards else part)
        return found

    def _check(self) -> None:
        """Every tensor is there with its shape, before anything is allocated."""
        for name, layer, shape in self.layers.tensors():
            rows = 0
            for part in self._names(name, layer):
                if part not in self._shards:
                    raise InputError(
                        f"tensor '{part}' is missing", where=str(self.folder), cure="Is it the same model?"
                    )
                found = tuple(self._slice(part).get_shape())
                rows += found[0] if found else 0
                if len(found) != len(shape) or found[1:] != shape[1:]:
                    raise InputError(
                        f"tensor '{part}' has shape {list(found)}, the config needs {[rows, *shape[1:]]}",
                        where=str(self.folder / self._shards[part]),
                    )
            if rows != shape[0]:
                raise InputError(
                    f"'{name}' of layer {layer} has {rows} rows, the config needs {shape[0]}", where=str(self.folder)
                )

    def _file(self, part: str) -> Any:
        shard = self._shards[part]
        if shard not in self._open:
            self._open[shard] = _open(self.folder / shard)
        return self._open[shard]

    def _slice(self, part: str) -> Any:
        return self._read(part, lambda file: file.get_slice(part))

    def _tensor(self, part: str) -> torch.Tensor:
        tensor: torch.Tensor = self._read(part, lambda file: file.get_tensor(part))
        return tensor

    def _read(self, part: str, get: Callable[[Any], Any]) -> Any:
        try:
            return get(self._file(part))
        except SafetensorError as error:
            where = str(self.folder / self._shards[part])
            raise InputError(
                f"cannot read tensor '{part}': {error}", where=where, cure="Fetch the file again"
            ) from None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"not a whole safetensors file: {error}"
        raise InputError(what, where=str(path), cure="Fetch the checkpoint again") from None


def _shards(folder: Path) -> dict[str, str]:
    """Tensor name to file name."""
    if (folder / INDEX).exists():
        try:
            mapping = json.loads(read_text(folder / INDEX, "index"))["weight_map"]
            return {str(k): str(v) for k, v in mapping.items()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError("not a safetensors index", where=str(folder / INDEX), cure="Fetch it again") from None
    if not (folder / SINGLE).exists():
        raise InputError(f"neither {SINGLE} nor {INDEX} here", where=str(folder), cure="Give a Hugging Face folder")
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def torch_dtype(model: ModelSpec) -> torch.dtype:
    return DTYPES[model.dtype]

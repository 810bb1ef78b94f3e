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
FLOATS = ("F32", "BF16", "F16")
"""Element types that may stand in a file: others are of quantised weights, whose numbers mean something else."""
DERIVED = ("rotary_emb.inv_freq", "decoder.version")
"""How tensors end that old checkpoints hold and no model reads: they follow from the config."""
HEAD, ROWS_AT_ONCE = "lm_head.weight", 4096


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
                self._fill(part, into)
            self._open.pop(shard)

    def _fill(self, part: str, into: torch.Tensor) -> None:
        into.copy_(self._tensor(part))
        if not all(torch.isfinite(end) for end in torch.aminmax(into)):
            what = f"tensor '{part}' holds inf, NaN, or more than {self.layers.model.dtype} can"
            cure = "Fetch the file again, or plan with a wider --dtype"
            raise InputError(what, where=str(self.folder / self._shards[part]), cure=cure)

    def _names(self, name: str, layer: int | None) -> list[str]:
        found = []
        for part in self.layers.checkpoint_names(name, layer):
            bare = part.removeprefix("model.")  # checkpoints of the bare decoder lack the outer prefix
            found.append(bare if bare in self._shards and part not in self._shards else part)
        return found

    def _check(self) -> None:
        """Every tensor is there with its shape, and none that the model does not have, before anything is allocated."""
        used: set[str] = set()
        for name, layer, shape in self.layers.tensors():
            parts = self._names(name, layer)
            used.update(parts)
            rows = sum(self._rows(part, shape) for part in parts)
            if rows != shape[0]:
                what = f"'{name}' of layer {layer} has {rows} rows, the config needs {shape[0]}"
                raise InputError(what, where=str(self.folder), cure="Is it the same model?")
        unused = [name for name in self._shards if name not in used and not name.endswith(DERIVED)]
        if self.layers.model.tied and HEAD in unused:
            self._check_tied()
            unused.remove(HEAD)
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            what = f"tensor '{min(unused)}'{more} is of no part that the config describes"
            cure = "Is the config of this checkpoint? Without it the model would be another"
            raise InputError(what, where=str(self.folder / self._shards[min(unused)]), cure=cure)

    def _rows(self, part: str, shape: tuple[int, ...]) -> int:
        """Rows of one tensor that goes, perhaps with others, into one of `shape`."""
        if part not in self._shards:
            raise InputError(f"tensor '{part}' is missing", where=str(self.folder), cure="Is it the same model?")
        where, found = str(self.folder / self._shards[part]), tuple(self._slice(part).get_shape())
        if len(found) != len(shape) or found[1:] != shape[1:]:
            wanted = [found[0] if found else shape[0], *shape[1:]]
            what = f"tensor '{part}' has shape {list(found)}, the config needs {wanted}"
            raise InputError(what, where=where, cure="Is it the same model?")
        kind = self._slice(part).get_dtype()
        if kind not in FLOATS:
            what = f"tensor '{part}' is of type {kind}: quantised weights are not supported"
            raise InputError(what, where=where, cure=f"Use the unquantised model: {', '.join(FLOATS)}")
        return int(found[0])

    def _check_tied(self) -> None:
        """A head in the file must be the embedding if the config says so: which of them to believe, nobody knows."""
        (tokens,) = self._names("tokens", None)
        head, embedding = self._slice(HEAD), self._slice(tokens)
        same = head.get_shape() == embedding.get_shape() and all(
            torch.equal(head[at : at + ROWS_AT_ONCE], embedding[at : at + ROWS_AT_ONCE])
            for at in range(0, head.get_shape()[0], ROWS_AT_ONCE)
        )
        if not same:
            what = f"the config says that the head is the embedding, and '{HEAD}' differs from '{tokens}'"
            cure = "Correct tie_word_embeddings in config.json"
            raise InputError(what, where=str(self.folder / self._shards[HEAD]), cure=cure)

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
            found = {str(k): str(v) for k, v in mapping.items()}
            if any(name != Path(name).name for name in found.values()):
                raise ValueError  # not a file of this folder
            return found
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise InputError("not a safetensors index", where=str(folder / INDEX), cure="Fetch it again") from None
    if not (folder / SINGLE).exists():
        raise InputError(f"neither {SINGLE} nor {INDEX} here", where=str(folder), cure="Give a Hugging Face folder")
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def torch_dtype(model: ModelSpec) -> torch.dtype:
    return DTYPES[model.dtype]

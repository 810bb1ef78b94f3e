"""Checkpoints that do not fit their config, or are broken: refused by name before anything is allocated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_helpers import build, save
from safetensors.torch import load_file, save_file

from planner.errors import InputError
from planner.model import load_model
from runtime.layers.base import layers_for
from runtime.weights import Checkpoint, Home, torch_dtype

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.2"
UP, EMBEDDING, HEAD = f"{LAYER}.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(build("llama"), folder / "whole")
    save(build("llama"), folder / "sharded", shard="100KB")
    return folder


def load(folder: Path, dtype: str = "float32") -> None:
    """As a run does: everything is checked, then every tensor goes home."""
    layers = layers_for(load_model(str(folder), dtype))
    checkpoint = Checkpoint(folder, layers)
    there = torch_dtype(layers.model)
    checkpoint.fill([Home(name, layer, torch.empty(shape, dtype=there)) for name, layer, shape in layers.tensors()])


def refused(folder: Path, dtype: str = "float32") -> str:
    with pytest.raises(InputError) as caught:
        load(folder, dtype)
    assert str(folder) in caught.value.where and caught.value.cure
    return str(caught.value)


def test_whole_ones_load(whole: Path) -> None:
    for name in ("whole", "sharded"):
        load(whole / name)
    assert len(list((whole / "sharded").glob("*.safetensors"))) > 1


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def plus(**more: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name]).contiguous()}


def spoilt(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1, -1] = value
        return tensor

    return change


TENSORS: list[tuple[str, Callable[[Tensors], Tensors], str]] = [
    ("lost", without(UP), f"tensor '{UP}' is missing"),
    ("lost embedding", without(EMBEDDING), f"tensor '{EMBEDDING}' is missing"),
    ("empty", lambda _: {}, "is missing"),
    ("renamed", lambda t: {f"{k}x" if k == UP else k: v for k, v in t.items()}, f"tensor '{UP}' is missing"),
    ("one more layer", plus(model__layers__3__mlp__up_proj__weight=torch.zeros(96, 64)), "'model.layers.3.mlp"),
    ("a bias", plus(model__layers__0__self_attn__q_proj__bias=torch.zeros(64)), "q_proj.bias' is of no part"),
    ("two more", plus(a=torch.zeros(1), b=torch.zeros(1)), "tensor 'a' and 1 more is of no part that the config"),
    ("scales", plus(model__layers__0__mlp__up_proj__weight_scale=torch.ones(1)), "weight_scale' is of no part"),
    ("wide", put(UP, lambda t: t[:, :-1]), f"'{UP}' has shape [96, 63], the config needs [96, 64]"),
    ("tall", put(UP, lambda t: torch.cat([t, t[:1]])), "has 97 rows, the config needs 96"),
    ("turned", put(UP, lambda t: t.t()), "has shape [64, 96]"),
    ("flat", put(UP, lambda t: t.flatten()), "has shape [6144]"),
    ("scalar", put(UP, lambda _: torch.zeros(())), "has shape []"),
    ("other vocabulary", put(EMBEDDING, lambda t: t[:-3]), "'tokens' of layer None has 128 rows, the config needs 131"),
    ("int8", put(UP, lambda t: t.to(torch.int8)), f"'{UP}' is of type I8: quantised weights are not supported"),
    ("float8", put(UP, lambda t: t.to(torch.float8_e4m3fn)), "is of type F8_E4M3"),
    ("float64", put(UP, lambda t: t.double()), "is of type F64"),
    ("NaN", put(UP, spoilt(float("nan"))), f"'{UP}' holds inf, NaN, or more than float32 can"),
    ("infinite", put(EMBEDDING, spoilt(float("-inf"))), f"'{EMBEDDING}' holds inf, NaN"),
]  # fmt: skip


def variant(whole: Path, folder: Path, **config: Any) -> Path:
    """A copy whose config says otherwise."""
    copied = shutil.copytree(whole / "whole", folder / "copy")
    said = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    (copied / "config.json").write_text(json.dumps(said | config), encoding="utf-8")
    return copied


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS])
def test_tensors_that_do_not_fit(whole: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], says: str) -> None:
    copied = variant(whole, tmp_path)
    save_file(change(load_file(copied / FILE)), copied / FILE)
    assert says in refused(copied)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hidden_layers": 2}, "layers.2.input_layernorm.weight' and 8 more is of no part"),
        ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight' is missing"),
        ({"hidden_size": 128}, "has shape [131, 64], the config needs [131, 128]"),
        ({"intermediate_size": 64}, "has 96 rows, the config needs 64"),
        ({"num_key_value_heads": 4}, "rows, the config needs 192"),
        ({"vocab_size": 130}, "has 131 rows, the config needs 130"),
        ({"attention_bias": True}, "self_attn.q_proj.bias' is missing"),
        ({"model_type": "qwen2"}, "self_attn.q_proj.bias' is missing"),
        ({"model_type": "qwen3"}, "self_attn.q_norm.weight' is missing"),
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not supported"),
        ({"tie_word_embeddings": True}, f"the head is the embedding, and '{HEAD}' differs from '{EMBEDDING}'"),
        ({"hidden_size": None}, "hidden_size: null is not a whole number"),
        ({"num_attention_heads": 7}, "7 attention heads cannot share 2 key/value heads"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
    ],
    ids=str,
)
def test_configs_of_another_model(whole: Path, tmp_path: Path, config: dict[str, Any], says: str) -> None:
    assert says in refused(variant(whole, tmp_path, **config))


def test_what_a_tied_or_old_checkpoint_may_hold_beside(whole: Path, tmp_path: Path) -> None:
    copied = variant(whole, tmp_path, tie_word_embeddings=True)
    tensors = load_file(copied / FILE)
    tensors |= {HEAD: tensors[EMBEDDING].clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors, copied / FILE)
    load(copied)


def test_numbers_that_a_narrow_type_cannot_hold(whole: Path, tmp_path: Path) -> None:
    copied = variant(whole, tmp_path)
    save_file(put(UP, spoilt(1e6))(load_file(copied / FILE)), copied / FILE)
    load(copied)
    said = refused(copied, "float16")
    assert "more than float16 can" in said and "wider --dtype" in said


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file(whole: Path, tmp_path: Path, cut: float) -> None:
    copied = variant(whole, tmp_path)
    content = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(content[: int(len(content) * cut) if 0 < cut < 1 else int(cut)])
    assert "not a whole safetensors file" in refused(copied)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\0" * 8, (5).to_bytes(8, "little") + b"{oops"])
def test_a_corrupt_header(whole: Path, tmp_path: Path, header: bytes) -> None:
    copied = variant(whole, tmp_path)
    (copied / FILE).write_bytes(header + (copied / FILE).read_bytes()[len(header) :])
    assert "not a whole safetensors file" in refused(copied)


def mapping(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        (folder / INDEX).write_text(json.dumps({"weight_map": change(said["weight_map"])}), encoding="utf-8")

    return edit


def last_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[-1]


def as_folder(folder: Path) -> None:
    shard = last_shard(folder)
    shard.unlink()
    shard.mkdir()


SHARDS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a shard is missing", lambda d: last_shard(d).unlink(), "no such file"),
    ("a shard is cut", lambda d: last_shard(d).write_bytes(last_shard(d).read_bytes()[:-1]), "not a whole safetensors"),
    ("a shard is a folder", as_folder, "not a whole"),
    ("half an index", lambda d: (d / INDEX).write_text('{"weight_map": {'), "not a safetensors index"),
    ("an index of nothing", mapping(lambda _: {}), "is missing"),
    ("an index of a list", mapping(list), "not a safetensors index"),
    ("an index without a map", lambda d: (d / INDEX).write_text("{}"), "not a safetensors index"),
    ("an index nested deeply", lambda d: (d / INDEX).write_text("[" * 10**5), "not a safetensors index"),
    ("an index lacks a tensor", mapping(lambda m: {k: v for k, v in m.items() if k != UP}), f"'{UP}' is missing"),
    ("an index has one more", mapping(lambda m: m | {"x": m[UP]}), "tensor 'x' is of no part"),
    ("an index names a file elsewhere", mapping(lambda m: m | {UP: "../a.safetensors"}), "not a safetensors index"),
    ("an index names another shard", mapping(lambda m: m | {UP: m[EMBEDDING]}), f"cannot read tensor '{UP}'"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in SHARDS], ids=[case[0] for case in SHARDS])
def test_shards_and_their_index(whole: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    copied = shutil.copytree(whole / "sharded", tmp_path / "copy")
    spoil(copied)
    assert says in refused(copied)

"""Reads a Hugging Face config.json: each key with its type checked, and what each model family makes of them."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Any, Literal, get_args

from planner.errors import InputError, nearest
from planner.files import read_text

Dtype = Literal["float16", "bfloat16", "float32"]
Family = Literal["opt", "llama", "mistral", "qwen2", "qwen3"]

MAX_SIZE = 10**7  # no layer count, width, vocabulary or context of a real model reaches this
OPT_POSITION_OFFSET = 2  # OPT's table of learned positions starts with two rows that no token uses
OPT_NORM_EPS = 1e-5  # not in OPT's config: its code takes the default of a layer norm
_SHAPE = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
_SHAPE |= {"vocab": "vocab_size", "max_positions": "max_position_embeddings"}  # the same keys in every family
_ABSENT: Any = object()
_WANTED = {int: "a whole number without quotes", float: "a number without quotes", bool: "true or false", str: "text"}


class Config:
    """A config.json, each key read with its type checked: every mistake names the file, the key and the cure."""

    def __init__(self, path: Path) -> None:
        self.path, text = path, read_text(path, "model config")
        try:
            self.data: Any = json.loads(text)
        except (ValueError, RecursionError) as error:  # the text of a syntax error says the line
            cure = "Is the file whole? Download it again"
            raise InputError(f"not valid JSON: {error}", where=str(path), cure=cure) from None
        if not isinstance(self.data, dict):
            raise InputError("a model config is a JSON object of keys and values", where=str(path))

    def below(self, key: str, data: dict[str, Any]) -> Config:
        """The block `key` of this config, for messages that say so."""
        found = copy(self)
        found.data, found.path = data, Path(f"{self.path}: {key}")
        return found

    def refuse_if(self, key: str, refused: bool, what: str, cure: str) -> None:
        """InputError about `key` where it is refused."""
        if refused:
            raise InputError(what, where=f"{self.path}: {key}", cure=cure)

    def get(self, key: str, kind: type, absent: Any = _ABSENT, null: Any = _ABSENT) -> Any:
        """The value of `key`, a `kind`. Where the key is missing `absent`, which is what the transformers
        library itself would assume; where it holds null, `null`."""
        value, wanted = self.data.get(key, absent), _WANTED[kind]
        self.refuse_if(key, value is _ABSENT, "this key is missing", f"Add it: {wanted}")
        if value is absent or (value is None and null is not _ABSENT):
            return absent if value is absent else null
        fits = type(value) is kind or (kind is float and type(value) is int)  # a bool is no number here
        self.refuse_if(key, not fits, f"{json.dumps(value)[:60]} is not {wanted}", f"Write {wanted}")
        possible = kind not in (int, float) or 0 < value < MAX_SIZE
        cure = f"It must be above 0 and below {MAX_SIZE}"
        self.refuse_if(key, not possible, f"{str(value)[:20]} is not possible", cure)
        return value

    def choice(self, key: str, known: tuple[str, ...], cure: str) -> str:
        """One of the known words."""
        value = str(self.get(key, str))
        self.refuse_if(key, value not in known, f"{value!r} is not supported", f"{cure} {', '.join(known)}")
        return value

    def token(self, key: str, absent: int | None) -> int | None:
        """A token id; of a list of end tokens the first."""
        value = self.data.get(key, absent)
        value = value[0] if isinstance(value, list) and value else value
        fits = value is None or (type(value) is int and 0 <= value < MAX_SIZE)
        self.refuse_if(key, not fits, f"{json.dumps(value)[:60]} is not a token id", "Write its number, or null")
        return value if isinstance(value, int) else None


def fields_of(config: Config, dtype: str | None) -> dict[str, Any]:
    """The fields of a `ModelSpec` but its name; `dtype` replaces the file's.

    Raises InputError for a config that describes a model this package would get wrong.
    """
    family = config.choice("model_type", get_args(Family), "Supported model types are")
    quantised, what = bool(config.data.get("quantization_config")), "quantised weights are not supported"
    config.refuse_if("quantization_config", quantised, what, "Use the unquantised model")
    shape = {field: config.get(key, int) for field, key in _SHAPE.items()}
    fields = shape | (_opt(config, shape) if family == "opt" else _llama_like(config, shape, family))
    return fields | {"family": family, "dtype": _dtype(config, dtype)}


def _dtype(config: Config, wanted: str | None) -> str:
    known = get_args(Dtype)
    if wanted in known:
        return str(wanted)
    if wanted is not None:
        raise InputError(f"unknown dtype {wanted!r}", where="dtype", cure=nearest(wanted, known))
    # transformers renamed the key; where a file has both, it lets the new one win.
    key = "dtype" if config.data.get("dtype") is not None else "torch_dtype"
    unsaid, cure = config.data.get(key) in (None, "auto"), "Pass --dtype with one of"
    config.refuse_if(key, unsaid, "the config does not say how wide its weights are", f"{cure} {', '.join(known)}")
    return config.choice(key, known, cure)


def _head_dim(config: Config, hidden: int, heads: int) -> int:
    what = f"{heads} heads do not divide hidden_size {hidden}"
    config.refuse_if("num_attention_heads", hidden % heads != 0, what, "Correct one of the two")
    return hidden // heads


def _opt(config: Config, shape: dict[str, int]) -> dict[str, Any]:
    hidden, heads, bias = shape["hidden"], shape["heads"], config.get("enable_bias", bool, True)
    usual = {"do_layer_norm_before": True, "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False}
    cure = "Choose another OPT size: opt-350m and some old conversions are built differently"
    for key, value in usual.items():
        what = f"only {str(value).lower()} is supported"
        config.refuse_if(key, config.get(key, bool, value) != value, what, cure)
    width = config.get("word_embed_proj_dim", int, hidden, null=hidden)
    what = f"embeddings of width {width} under a hidden_size of {hidden} are not supported"
    config.refuse_if("word_embed_proj_dim", width != hidden, what, cure)
    return {
        "kv_heads": heads, "head_dim": _head_dim(config, hidden, heads), "ffn": config.get("ffn_dim", int),
        "gated": False, "positions": "learned", "position_offset": OPT_POSITION_OFFSET,
        "norm": "layernorm", "norm_eps": OPT_NORM_EPS,
        "attention_bias": bias, "output_bias": bias, "mlp_bias": bias,
        "tied": config.get("tie_word_embeddings", bool, True),
        "activation": config.get("activation_function", str, "relu"),
        "bos_token_id": config.token("bos_token_id", 2), "eos_token_id": config.token("eos_token_id", 2),
    }  # fmt: skip


def _llama_like(config: Config, shape: dict[str, int], family: str) -> dict[str, Any]:
    hidden, heads, is_llama, is_qwen2 = shape["hidden"], shape["heads"], family == "llama", family == "qwen2"
    is_qwen3 = family == "qwen3"
    absent = {"mistral": 8, "qwen2": 32, "qwen3": 32}.get(family, heads)
    kv_heads = config.get("num_key_value_heads", int, absent, null=heads)
    what = f"{heads} attention heads cannot share {kv_heads} key/value heads evenly"
    config.refuse_if("num_key_value_heads", heads % kv_heads != 0, what, "Set both as the model was trained")
    if family == "mistral" or ((is_qwen2 or is_qwen3) and config.get("use_sliding_window", bool, False)):
        window = config.get("sliding_window", int, 4096, null=shape["max_positions"])
        what = f"a sliding window of {window} tokens is not supported: contexts beyond it would be wrong"
        cure = f"Use a model without one, or set max_position_embeddings to {window} to stay inside it"
        config.refuse_if("sliding_window", window < shape["max_positions"], what, cure)
    bias = (is_llama or is_qwen3) and config.get("attention_bias", bool, False)
    head_dim = config.get("head_dim", int, 128 if is_qwen3 else None, null=None)
    rotated = config.get("partial_rotary_factor", float, 1.0, null=1.0)
    config.refuse_if("partial_rotary_factor", rotated != 1, "only whole heads are rotated here", "Choose another model")
    no_ends = is_qwen2 or is_qwen3
    return {
        "kv_heads": kv_heads, "head_dim": head_dim or _head_dim(config, hidden, heads),
        "ffn": config.get("intermediate_size", int), "gated": True, "positions": "rope", "position_offset": 0,
        "norm": "rmsnorm", "norm_eps": float(config.get("rms_norm_eps", float, 1e-6)),
        "rope": _rope(config, shape["max_positions"]), "qk_norm": is_qwen3,
        "attention_bias": bias or is_qwen2, "output_bias": bias,
        "mlp_bias": is_llama and config.get("mlp_bias", bool, False),
        "tied": config.get("tie_word_embeddings", bool, False), "activation": config.get("hidden_act", str, "silu"),
        "bos_token_id": config.token("bos_token_id", None if no_ends else 1),
        "eos_token_id": config.token("eos_token_id", None if no_ends else 2),
    }  # fmt: skip


ROPE_KINDS = {"default": "none", "none": "none", "linear": "linear", "llama3": "llama3", "dynamic": "none"}
"""By what a config calls them. `dynamic` scales only beyond the model's positions, where no request goes."""


def _rope(config: Config, positions: int) -> dict[str, Any]:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as they were before transformers 5."""
    key = "rope_parameters" if config.data.get("rope_parameters") is not None else "rope_scaling"
    block = config.data.get(key) or {}
    config.refuse_if(key, not isinstance(block, dict), "not an object of keys and values", "Download the config again")
    inside = config.below(key, block)
    kind = str(block.get("rope_type", block.get("type", "default")))
    known = ", ".join(ROPE_KINDS)
    inside.refuse_if("rope_type", kind not in ROPE_KINDS, f"{kind!r} is not supported", f"Supported are {known}")
    theta = inside.get("rope_theta", float, config.get("rope_theta", float, 1e4, null=1e4), null=1e4)
    found: dict[str, Any] = {"theta": float(theta), "scaling": ROPE_KINDS[kind]}
    if kind in ("linear", "llama3"):
        found["factor"] = float(inside.get("factor", float))
    if kind == "llama3":
        found["low_freq_factor"] = float(inside.get("low_freq_factor", float))
        found["high_freq_factor"] = float(inside.get("high_freq_factor", float))
        found["original_positions"] = inside.get("original_max_position_embeddings", int, positions)
        what = "high_freq_factor must be above low_freq_factor"
        inside.refuse_if("high_freq_factor", found["high_freq_factor"] <= found["low_freq_factor"], what, "Correct one")
    return found

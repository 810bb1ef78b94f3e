"""Small random checkpoints of every family, saved by transformers, which is also the oracle for their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
KINDS: dict[str, tuple[Any, Any]] = {
    "opt": (OPTConfig, OPTForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}  # fmt: skip
GAIN = 1.5


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of few and narrow layers, its weights large enough for text that does not repeat itself."""
    config_class, model_class = KINDS[family]
    shape: dict[str, Any] = {
        "vocab_size": 131, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 256, "torch_dtype": "float32",
    }  # fmt: skip
    if family == "opt":
        shape |= {"ffn_dim": 96, "word_embed_proj_dim": changes.get("hidden_size", 64), "dropout": 0.0}
    else:
        shape |= {"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": False}
        shape |= {"bos_token_id": None, "eos_token_id": None}
    if family == "mistral":
        shape["sliding_window"] = None
    if family == "qwen3":
        shape["head_dim"] = 24
    model: PreTrainedModel = model_class(config_class(**(shape | changes))).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = GAIN / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 0.1
            fresh = torch.randn(weight.shape, generator=draw) * (0.05 if "embed" in name else spread)
            weight.copy_(fresh + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def save(model: PreTrainedModel, folder: Path, shard: str = "5GB") -> Path:
    """As people get it: config and safetensors, sharded where that is small enough."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]], gens: Sequence[int]) -> list[list[int]]:
    """Greedy tokens of each prompt alone, in the model's own dtype."""
    found = []
    with torch.inference_mode():
        for prompt, gen in zip(prompts, gens, strict=True):
            ids = torch.tensor([list(prompt)])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=gen, min_new_tokens=gen, do_sample=False,
                eos_token_id=None, pad_token_id=1,
            )  # fmt: skip
            found.append(out[0, len(prompt) :].tolist())
    return found

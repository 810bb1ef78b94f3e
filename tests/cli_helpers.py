"""Runs the `hybridserve` command in this process, and builds the small machine, checkpoint and plans it works on."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from runtime_helpers import small_profile
from transformers import OPTConfig, OPTForCausalLM

import hybridserve
from planner.files import dump_yaml
from planner.model import load_model

GPU_BYTES = 1.6e6
"""Too little for the weights and the cache of opt-tiny: layers stream and blocks spill."""
LENGTHS = "--requests 8 --prompt-len 64 --gen-len 8"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


def cli(*args: str | Path) -> Done:
    """The real command with `args`, captured."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["hybridserve", *map(str, args)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            hybridserve.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


def write_small_profile(path: Path, device: str = "cpu") -> Path:
    """A machine of `GPU_BYTES`, with fp32 rates."""
    path.write_text(dump_yaml(small_profile(device, GPU_BYTES).to_plain()), encoding="utf-8")
    return path


def tiny_opt(**changes: Any) -> OPTForCausalLM:
    """A random OPT of the shape of opt-tiny, with weights large enough that its choices are clear."""
    model = load_model("opt-tiny")
    shape: dict[str, Any] = {
        "vocab_size": model.vocab, "hidden_size": model.hidden, "num_hidden_layers": model.layers,
        "ffn_dim": model.ffn, "num_attention_heads": model.heads, "max_position_embeddings": model.max_positions,
        "word_embed_proj_dim": model.hidden, "dropout": 0.0, "init_std": 0.2,
    }  # fmt: skip
    torch.manual_seed(5)
    return OPTForCausalLM(OPTConfig(**(shape | changes))).float().eval()


def write_prompts(path: Path, count: int = 8, length: int = 64, **fields: Any) -> Path:
    """Prompts of equal lengths as token ids."""
    lines = [
        json.dumps({"id": f"p{i}", "tokens": [(7 * i + 3 * j + 11) % 250 for j in range(length)], **fields})
        for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

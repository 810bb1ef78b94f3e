"""OPT: learned positions, layer norms before each block, biases everywhere, tied head."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtime.layers.base import Layers, Shapes, Weights, Workspace, linear


class OptLayers(Layers):
    """Zhang et al. 2022, as in transformers' OPTForCausalLM with do_layer_norm_before."""

    def layer_shapes(self) -> Shapes:
        d, f, m = self.model.hidden, self.model.ffn, self.model
        fused = m.d_q + 2 * m.d_kv
        shapes: Shapes = {
            "norm1.weight": (d,), "norm1.bias": (d,),
            "qkv.weight": (fused, d), "out.weight": (d, m.d_q),
            "norm2.weight": (d,), "norm2.bias": (d,),
            "up.weight": (f, d), "down.weight": (d, f),
        }  # fmt: skip
        if m.attention_bias:
            shapes |= {"qkv.bias": (fused,)}
        if m.output_bias:
            shapes |= {"out.bias": (d,)}
        if m.mlp_bias:
            shapes |= {"up.bias": (f,), "down.bias": (d,)}
        return shapes

    def outer_shapes(self) -> Shapes:
        m = self.model
        shapes: Shapes = {
            "tokens": (m.vocab, m.hidden),
            "positions": (m.max_positions + m.position_offset, m.hidden),
            "final_norm.weight": (m.hidden,),
            "final_norm.bias": (m.hidden,),
        }
        if not m.tied:
            shapes["head"] = (m.vocab, m.hidden)
        return shapes

    def checkpoint_names(self, tensor: str, layer: int | None) -> list[str]:
        if layer is None:
            return [{
                "tokens": "model.decoder.embed_tokens.weight",
                "positions": "model.decoder.embed_positions.weight",
                "final_norm.weight": "model.decoder.final_layer_norm.weight",
                "final_norm.bias": "model.decoder.final_layer_norm.bias",
                "head": "lm_head.weight",
            }[tensor]]  # fmt: skip
        part, kind = tensor.split(".")
        names = {
            "norm1": ["self_attn_layer_norm"], "norm2": ["final_layer_norm"],
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "out": ["self_attn.out_proj"], "up": ["fc1"], "down": ["fc2"],
        }[part]  # fmt: skip
        return [f"model.decoder.layers.{layer}.{name}.{kind}" for name in names]

    def embed(self, w: Weights, tokens: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
        torch.index_select(w["tokens"], 0, tokens, out=out)
        out += w["positions"][positions + self.model.position_offset]

    def normed(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        return self._norm(w, "norm1", hidden)

    def place_qkv(self, w: Weights, qkv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        """Nothing: learned positions are in the embedding."""

    def place_keys(self, w: Weights, kv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        """Nothing, likewise."""

    def finish(self, w: Weights, hidden: torch.Tensor, attended: torch.Tensor, space: Workspace) -> None:
        n, d = hidden.shape
        hidden += linear(w["out.weight"], w.get("out.bias"), attended, space.take(n, d))
        up = linear(w["up.weight"], w.get("up.bias"), self._norm(w, "norm2", hidden), space.take(n, self.model.ffn))
        hidden += linear(w["down.weight"], w.get("down.bias"), F.relu_(up), space.take(n, d))

    def logits(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        head = w.get("head", w["tokens"])
        normed = self._norm(w, "final_norm", hidden)
        return torch.mm(normed, head.t(), out=space.take(len(hidden), self.model.vocab))

    def _norm(self, w: Weights, name: str, hidden: torch.Tensor) -> torch.Tensor:
        shape = (self.model.hidden,)
        return F.layer_norm(hidden, shape, w[f"{name}.weight"], w[f"{name}.bias"], self.model.norm_eps)

"""Llama and what is built like it: Mistral, Qwen2, Qwen3. Rotary positions, RMS norms, a gated feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from runtime.layers.base import Layers, Shapes, Weights, Workspace, linear


class LlamaLayers(Layers):
    """Touvron et al. 2023, as in transformers' LlamaForCausalLM; biases and head norms where the config has them."""

    ACTIVATION = "silu"

    def layer_shapes(self) -> Shapes:
        m = self.model
        d, f, fused = m.hidden, m.ffn, m.d_q + 2 * m.d_kv
        shapes: Shapes = {
            "norm1.weight": (d,), "qkv.weight": (fused, d), "out.weight": (d, m.d_q),
            "norm2.weight": (d,), "gate.weight": (f, d), "up.weight": (f, d), "down.weight": (d, f),
        }  # fmt: skip
        if m.attention_bias:
            shapes |= {"qkv.bias": (fused,)}
        if m.output_bias:
            shapes |= {"out.bias": (d,)}
        if m.mlp_bias:
            shapes |= {"gate.bias": (f,), "up.bias": (f,), "down.bias": (d,)}
        if m.qk_norm:
            shapes |= {"q_norm.weight": (m.head_dim,), "k_norm.weight": (m.head_dim,)}
        return shapes

    def outer_shapes(self) -> Shapes:
        m = self.model
        shapes: Shapes = {"tokens": (m.vocab, m.hidden), "final_norm.weight": (m.hidden,)}
        if not m.tied:
            shapes["head"] = (m.vocab, m.hidden)
        return shapes

    def checkpoint_names(self, tensor: str, layer: int | None) -> list[str]:
        if layer is None:
            return [{
                "tokens": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight",
                "head": "lm_head.weight",
            }[tensor]]  # fmt: skip
        part, kind = tensor.split(".")
        names = {
            "norm1": ["input_layernorm"], "norm2": ["post_attention_layernorm"],
            "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "out": ["self_attn.o_proj"],
            "gate": ["mlp.gate_proj"], "up": ["mlp.up_proj"], "down": ["mlp.down_proj"],
            "q_norm": ["self_attn.q_norm"], "k_norm": ["self_attn.k_norm"],
        }[part]  # fmt: skip
        return [f"model.layers.{layer}.{name}.{kind}" for name in names]

    def embed(self, w: Weights, tokens: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
        torch.index_select(w["tokens"], 0, tokens, out=out)

    def normed(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        return self._norm(w["norm1.weight"], hidden)

    def place_qkv(self, w: Weights, qkv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        m = self.model
        heads = qkv[:, : m.d_q + m.d_kv].unflatten(1, (m.heads + m.kv_heads, m.head_dim))
        if m.qk_norm:
            self._norm_heads(heads[:, : m.heads], w["q_norm.weight"])
            self._norm_heads(heads[:, m.heads :], w["k_norm.weight"])
        self.rotary.turn(heads, positions, space)

    def place_keys(self, w: Weights, kv: torch.Tensor, positions: torch.Tensor, space: Workspace) -> None:
        m = self.model
        heads = kv[:, : m.d_kv].unflatten(1, (m.kv_heads, m.head_dim))
        if m.qk_norm:
            self._norm_heads(heads, w["k_norm.weight"])
        self.rotary.turn(heads, positions, space)

    def finish(self, w: Weights, hidden: torch.Tensor, attended: torch.Tensor, space: Workspace) -> None:
        n, d = hidden.shape
        hidden += linear(w["out.weight"], w.get("out.bias"), attended, space.take(n, d))
        normed = self._norm(w["norm2.weight"], hidden)
        gate = linear(w["gate.weight"], w.get("gate.bias"), normed, space.take(n, self.model.ffn))
        up = linear(w["up.weight"], w.get("up.bias"), normed, space.take(n, self.model.ffn))
        up.mul_(F.silu(gate, inplace=True))
        hidden += linear(w["down.weight"], w.get("down.bias"), up, space.take(n, d))

    def logits(self, w: Weights, hidden: torch.Tensor, space: Workspace) -> torch.Tensor:
        head = w.get("head", w["tokens"])
        normed = self._norm(w["final_norm.weight"], hidden)
        return torch.mm(normed, head.t(), out=space.take(len(hidden), self.model.vocab))

    def _norm(self, weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.model.norm_eps)

    def _norm_heads(self, heads: torch.Tensor, weight: torch.Tensor) -> None:
        heads.copy_(self._norm(weight, heads))

"""Every family's tokens are those of transformers, from checkpoints that transformers saved, whatever the plan does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from family_helpers import KINDS, LINEAR, LLAMA3, build, greedy, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_helpers import planned, ragged, with_random_forms

from planner.errors import InputError, RunError
from planner.memory import gpu_lines
from planner.model import load_model
from planner.plan import Plan
from planner.workload import Workload
from runtime.cpu_device import CpuDevice
from runtime.engine import random_prompts
from runtime.execution import execute
from runtime.layers.base import layers_for

JOB = ragged(5, gen_len=24)
GENS = [request.gen_len for request in JOB.requests]
Saved = dict[str, tuple[Path, list[list[int]]]]
"""Folder and expected tokens by variant."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {}),
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-biased": ("llama", {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    "mistral": ("mistral", {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folder and expected tokens of every variant; one is sharded."""
    found = {}
    for name, (family, changes) in VARIANTS.items():
        model = build(family, **changes)
        folder = save(model, tmp_path_factory.mktemp(name) / "model", "60KB" if name == "qwen3" else "5GB")
        plan = planned(load_model(str(folder)), JOB, gpu_bytes=1e8)
        found[name] = folder, greedy(model, random_prompts(plan, 0), GENS)
    return found


def tokens(plan: Plan, folder: Path) -> list[list[int]]:
    return execute(plan, random_prompts(plan, 0), folder, device=CpuDevice(None, None)).tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_planned_bytes_are_those_of_the_tensors(name: str, saved: Saved) -> None:
    """What the planner counts is what the checkpoint holds, and what the layers lay out."""
    folder, _ = saved[name]
    spec, family = load_model(str(folder)), VARIANTS[name][0]
    model = KINDS[family][1].from_pretrained(folder)
    assert spec.parameters == sum(weight.numel() for weight in model.parameters())
    layers = layers_for(spec)
    sizes = {one: sum(torch.Size(s).numel() for n, layer, s in layers.tensors() if layer == one) for one in (None, 0)}
    assert sizes[0] == spec.layer_parameters
    assert sizes[None] * spec.element_bytes == spec.outer_bytes


@pytest.mark.parametrize("name", VARIANTS)
def test_expected_text_is_worth_matching(name: str, saved: Saved) -> None:
    assert len({token for one in saved[name][1] for token in one}) > 15


@pytest.mark.parametrize("policy", ["hybrid", "kv-only", "act-only"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_policy(name: str, policy: str, saved: Saved) -> None:
    folder, expected = saved[name]
    spec = load_model(str(folder))
    plan = planned(spec, JOB, gpu_bytes=7e5, policy=policy, mini_batches=2)
    assert tokens(plan, folder) == expected
    table = next(line for line in gpu_lines(spec, plan.decisions) if line.name == "rotary table")
    assert bool(table.nbytes) == (spec.positions == "rope")


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3"])
def test_forced_activations_with_grouped_queries(name: str, share: float, saved: Saved) -> None:
    """The planner would never choose them: that the tokens are right must not rest on that."""
    folder, expected = saved[name]
    plan = planned(load_model(str(folder)), JOB, gpu_bytes=7e5, act_share=share, mini_batches=3, max_resident_layers=0)
    assert plan.prediction.act_share > 0.1
    assert tokens(plan, folder) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_random_forms_of_every_block(name: str, saved: Saved) -> None:
    folder, expected = saved[name]
    plan = with_random_forms(planned(load_model(str(folder)), JOB, mini_batches=2, max_resident_layers=1), seed=3)
    assert tokens(plan, folder) == expected


def test_waves_turn_by_their_own_positions(saved: Saved) -> None:
    folder, expected = saved["llama3"]
    plan = planned(load_model(str(folder)), JOB, gpu_bytes=7e5, waves=3, act_share=0.5)
    assert len(plan.waves) == 3
    assert tokens(plan, folder) == expected


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], Workload, dict[str, Any]]:
    family = draw(st.sampled_from(sorted(KINDS)))
    heads = draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([8, 16, 24]))
    changes: dict[str, Any] = {
        "num_attention_heads": heads, "hidden_size": heads * head_dim, "num_hidden_layers": draw(st.integers(1, 4)),
        "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    if family != "opt":
        changes["num_key_value_heads"] = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))
        changes["head_dim"] = draw(st.sampled_from([head_dim, 16]))
        changes["rope_parameters"] = draw(
            st.sampled_from([{"rope_type": "default", "rope_theta": 5e4}, LINEAR, LLAMA3])
        )
    work = ragged(draw(st.integers(1, 6)), gen_len=draw(st.integers(1, 20)), longest=draw(st.integers(1, 60)))
    options = {
        "policy": draw(st.sampled_from(["hybrid", "kv-only", "act-only"])),
        "mini_batches": draw(st.sampled_from([None, 1, 2])),
        "max_resident_layers": draw(st.sampled_from([None, 0, 1])),
        "gpu_bytes": draw(st.sampled_from([1e6, 4e6])),
        "waves": None,  # some of these jobs are more than the memory holds at once
    }
    return family, changes, work, options


@given(configurations(), st.integers(0, 2**20))
@settings(
    max_examples=int(os.environ.get("FAMILIES", "15")), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
def test_random_configurations(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, dict[str, Any], Workload, dict[str, Any]], seed: int
) -> None:
    family, changes, work, options = case
    model = build(family, seed, **changes)
    folder = save(model, tmp_path_factory.mktemp("random") / "model")
    plan = planned(load_model(str(folder)), work, **options)
    expected = greedy(model, random_prompts(plan, 0), [request.gen_len for request in work.requests])
    assert tokens(plan, folder) == expected


@pytest.mark.parametrize("name", ["opt", "llama3", "qwen2", "qwen3"])
def test_bfloat16_logits_are_near(name: str, tmp_path: Path) -> None:
    """bf16 has 8 bits of mantissa: the first token's logits agree with those of transformers in bf16 within 5 %."""
    family, changes = VARIANTS[name]
    model = build(family, **changes).to(torch.bfloat16)
    folder = save(model, tmp_path / "model")
    spec = load_model(str(folder))
    assert spec.dtype == "bfloat16"
    work = Workload.uniform(3, 20, 2)
    plan = planned(spec, work, gpu_bytes=1e8)
    prompts = random_prompts(plan, 0)
    with torch.inference_mode():
        logits = model(torch.tensor(prompts)).logits[:, -1].float()
    chosen = execute(plan, prompts, folder, device=CpuDevice(None, None)).tokens
    best = logits.max(dim=-1).values
    found = logits[torch.arange(3), torch.tensor([one[0] for one in chosen])]
    assert torch.all(best - found <= 0.05 * logits.abs().max())


# ---- what is refused -------------------------------------------------------------------------------


def edited(folder: Path, into: Path, **changes: Any) -> Path:
    """A copy of the config alone, with some keys changed."""
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_text(json.dumps(data | changes), encoding="utf-8")
    return into


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type: 'yarn' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor: this key is missing"),
        ("llama", {"rope_parameters": 5}, "rope_parameters: not an object"),
        ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "must be above low_freq_factor"),
        ("llama", {"rope_parameters": None, "rope_theta": "high"}, 'rope_theta: "high" is not a number'),
        ("llama", {"partial_rotary_factor": 0.5}, "only whole heads are rotated"),
        ("mistral", {"sliding_window": 100}, "a sliding window of 100 tokens is not supported"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64}, "a sliding window of 64 tokens"),
    ],
)
def test_configs_that_would_be_wrong_are_refused(
    name: str, changes: dict[str, Any], said: str, saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        load_model(str(edited(saved[name][0], tmp_path / "odd", **changes)))
    assert said in str(refused.value)


def test_old_spellings_of_rope_are_read(saved: Saved, tmp_path: Path) -> None:
    folder = saved["llama3"][0]
    old = {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {**LLAMA3, "type": "llama3"}}
    del old["rope_scaling"]["rope_theta"], old["rope_scaling"]["rope_type"]  # type: ignore[index]
    again = load_model(str(edited(folder, tmp_path / "old", **old)))
    assert again.rope == load_model(str(folder)).rope
    dynamic = edited(folder, tmp_path / "dynamic", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    found = load_model(str(dynamic)).rope
    assert found is not None and found.scaling == "none"


def test_an_activation_that_is_not_executed_is_named(saved: Saved, tmp_path: Path) -> None:
    odd = load_model(str(edited(saved["llama"][0], tmp_path / "odd", hidden_act="gelu")))
    with pytest.raises(RunError, match="executes llama with activation 'silu'"):
        layers_for(odd)

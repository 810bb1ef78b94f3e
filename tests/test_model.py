"""Model shapes against the library that defines them, and every way a config.json can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from planner.errors import InputError
from planner.model import BUNDLED, ModelSpec, known_models, load_model

PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
}
OPT_LAYER_MATRICES_MB = {
    "opt-6.7b": 402.7,
    "opt-13b": 629.1,
    "opt-30b": 1233.1,
    "opt-66b": 2038.4,
    "opt-175b": 3623.9,
}
"""The six matrices of a layer in half precision, without biases and norms."""
SMALLEST: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 256},
    "llama": {"intermediate_size": 160},
    "mistral": {"intermediate_size": 160, "sliding_window": None},
    "qwen2": {"intermediate_size": 160},
}
"""Per family only the keys that have no default here, beside those of `smallest`."""


def smallest(family: str, **changes: Any) -> dict[str, Any]:
    """The shortest config that loads; 32 heads because two families assume 8 or 32 key/value heads."""
    config: dict[str, Any] = {
        "model_type": family,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 32,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "torch_dtype": "float32",
        **SMALLEST[family],
        **changes,
    }
    return {key: value for key, value in config.items() if value != "ABSENT"}


def written(folder: Path, config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def reference(config: dict[str, Any]) -> Any:
    """The model that transformers builds from `config`, without memory for its weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    plain = {key: value for key, value in config.items() if key != "torch_dtype"}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**plain))


def assert_agrees(model: ModelSpec, built: Any) -> None:
    """Every count and constant that `model` claims is what `built` has."""
    layers = built.model.decoder.layers if model.family == "opt" else built.model.layers
    config, attention = built.config, layers[0].self_attn
    assert model.parameters == sum(p.numel() for p in built.parameters())
    assert model.layer_parameters == sum(p.numel() for p in layers[0].parameters())
    assert model.layers == len(layers)
    assert model.d_kv == attention.k_proj.out_features
    assert model.d_q == attention.q_proj.out_features
    assert model.head_dim == attention.head_dim
    assert model.attention_bias == (attention.k_proj.bias is not None)
    output = attention.out_proj if model.family == "opt" else attention.o_proj
    assert model.output_bias == (output.bias is not None)
    down = layers[0].fc2 if model.family == "opt" else layers[0].mlp.down_proj
    assert model.mlp_bias == (down.bias is not None)
    assert model.tied == (built.lm_head.weight is built.get_input_embeddings().weight)
    norm = layers[0].self_attn_layer_norm if model.family == "opt" else layers[0].input_layernorm
    assert model.norm_eps == (norm.eps if model.family == "opt" else norm.variance_epsilon)
    assert model.activation == (config.activation_function if model.family == "opt" else config.hidden_act)
    assert (model.bos_token_id, model.eos_token_id) == (config.bos_token_id, config.eos_token_id)


@pytest.mark.parametrize("name", known_models())
def test_bundled_model_agrees_with_transformers(name: str) -> None:
    config = json.loads((BUNDLED / f"{name}.json").read_text())
    assert_agrees(load_model(name), reference(config))


@pytest.mark.parametrize("family", SMALLEST)
def test_defaults_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    config = smallest(family)
    model = load_model(str(written(tmp_path, config)))
    assert_agrees(model, reference(config))


@pytest.mark.parametrize(
    "config",
    [
        smallest("opt", enable_bias=False, tie_word_embeddings=False),
        smallest("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        smallest("llama", num_key_value_heads=4, head_dim=16),
        smallest("llama", num_key_value_heads=None, head_dim=None),
        smallest("mistral", head_dim=32, attention_bias=True, mlp_bias=True),
        smallest("mistral", sliding_window=128),
        smallest("qwen2", num_key_value_heads=4, head_dim=8, rms_norm_eps=1e-5),
        smallest("qwen2", sliding_window=16, attention_bias=False),
    ],
)
def test_options_mean_what_they_mean_to_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    assert_agrees(load_model(str(written(tmp_path, config))), reference(config))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str) -> None:
    assert load_model(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", OPT_LAYER_MATRICES_MB)
def test_opt_layer_bytes(name: str) -> None:
    model = load_model(name)
    biases = 5 * model.hidden + model.ffn
    norms = 2 * 2 * model.hidden
    matrices = model.layer_bytes - (biases + norms) * model.element_bytes
    assert matrices / 1e6 == pytest.approx(OPT_LAYER_MATRICES_MB[name], abs=0.06)


@pytest.mark.parametrize("name", known_models())
def test_bytes_add_up(name: str) -> None:
    model = load_model(name)
    outer = model.embedding_parameters + model.head_parameters + model.final_norm_parameters
    assert model.outer_bytes == outer * model.element_bytes
    assert model.weight_bytes == model.outer_bytes + model.layers * model.layer_bytes


def test_cache_bytes() -> None:
    opt, llama = load_model("opt-30b"), load_model("llama-3-8b")
    assert (opt.kv_bytes_per_token_layer, opt.act_bytes_per_token_layer, opt.gqa_group) == (28672, 14336, 1)
    assert (llama.kv_bytes_per_token_layer, llama.act_bytes_per_token_layer, llama.gqa_group) == (4096, 8192, 4)


def test_dtype_argument_wins_and_scales_the_bytes() -> None:
    half, full = load_model("opt-125m"), load_model("opt-125m", dtype="float32")
    assert (half.dtype, full.dtype) == ("float16", "float32")
    assert full.weight_bytes == 2 * half.weight_bytes
    assert full.content_hash != half.content_hash


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "ABSENT", "dtype": "float16"}, "float16"),
        ({"torch_dtype": "float32", "dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16", "dtype": None}, "float16"),
    ],
)
def test_dtype_under_either_key(keys: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert load_model(str(written(tmp_path, smallest("llama", **keys)))).dtype == dtype


def test_folder_and_file_give_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = written(folder, smallest("opt"))
    other = tmp_path / "renamed.json"
    other.write_text(path.read_text())
    models = [load_model(str(place)) for place in (folder, path, other)]
    assert [model.name for model in models] == ["my-model", "my-model", "renamed"]
    assert len({model.content_hash for model in models}) == 1


def test_a_list_of_end_tokens_gives_its_first(tmp_path: Path) -> None:
    config = smallest("llama", eos_token_id=[7, 9], bos_token_id=None)
    model = load_model(str(written(tmp_path, config)))
    assert (model.bos_token_id, model.eos_token_id) == (None, 7)


def test_null_key_value_heads_means_one_per_head(tmp_path: Path) -> None:
    config = smallest("mistral", num_key_value_heads=None)  # older releases of transformers allow it
    assert load_model(str(written(tmp_path, config))).kv_heads == 32


def test_bundled_names_load_under_their_own_name() -> None:
    assert known_models() == sorted(known_models())
    assert [load_model(name).name for name in known_models()] == known_models()


BAD_CONFIGS: list[tuple[Any, str, str]] = [
    ('{"model_type": "opt",\n "hidden_size": 64\n "x": 1}', "", "line 3"),
    ("", "", "not valid JSON"),
    ("[" * 100_000, "", "not valid JSON"),
    ("[1, 2]", "", "JSON object"),
    (smallest("llama", model_type="gpt2"), "model_type", "'gpt2' is not supported. Supported model types are opt"),
    (smallest("llama", model_type="ABSENT"), "model_type", "missing"),
    (smallest("llama", model_type=["opt"]), "model_type", "text"),
    (smallest("llama", hidden_size="ABSENT"), "hidden_size", "missing"),
    (smallest("opt", ffn_dim="ABSENT"), "ffn_dim", "missing"),
    (smallest("llama", hidden_size="4096"), "hidden_size", '"4096" is not a whole number without quotes'),
    (smallest("llama", hidden_size=4096.0), "hidden_size", "4096.0 is not a whole number"),
    (smallest("llama", hidden_size=True), "hidden_size", "true is not a whole number"),
    (smallest("llama", hidden_size=None), "hidden_size", "null is not a whole number"),
    (smallest("llama", num_hidden_layers=-2), "num_hidden_layers", "-2 is not possible. It must be above 0"),
    (smallest("llama", vocab_size=0), "vocab_size", "0 is not possible"),
    (smallest("llama", intermediate_size=10**7), "intermediate_size", "below 10000000"),
    (smallest("llama", num_attention_heads=30), "num_attention_heads", "30 heads do not divide hidden_size 64"),
    (smallest("opt", num_attention_heads=30), "num_attention_heads", "30 heads do not divide hidden_size 64"),
    (smallest("llama", num_key_value_heads=5), "num_key_value_heads", "32 attention heads cannot share 5"),
    (smallest("qwen2", num_attention_heads=4), "num_key_value_heads", "4 attention heads cannot share 32"),
    (smallest("llama", rms_norm_eps="1e-5"), "rms_norm_eps", "is not a number without quotes"),
    (smallest("llama", rms_norm_eps=-1), "rms_norm_eps", "-1 is not possible"),
    (smallest("llama", rms_norm_eps=float("nan")), "rms_norm_eps", "nan is not possible"),
    (smallest("llama", rms_norm_eps=2), "norm_eps", "less than 1"),
    (smallest("llama", tie_word_embeddings="no"), "tie_word_embeddings", "is not true or false"),
    (smallest("llama", mlp_bias=1), "mlp_bias", "1 is not true or false"),
    (smallest("llama", hidden_act=None), "hidden_act", "null is not text"),
    (smallest("llama", eos_token_id="</s>"), "eos_token_id", "is not a token id"),
    (smallest("llama", eos_token_id=[]), "eos_token_id", "is not a token id"),
    (smallest("llama", torch_dtype="ABSENT"), "torch_dtype", "Pass --dtype with one of float16"),
    (smallest("llama", torch_dtype="auto"), "torch_dtype", "Pass --dtype"),
    (smallest("llama", torch_dtype="float64"), "torch_dtype", "'float64' is not supported"),
    (smallest("llama", torch_dtype=16), "torch_dtype", "16 is not text"),
    (smallest("llama", quantization_config={"bits": 4}), "quantization_config", "quantised"),
    (smallest("opt", do_layer_norm_before=False), "do_layer_norm_before", "opt-350m"),
    (smallest("opt", word_embed_proj_dim=32), "word_embed_proj_dim", "width 32"),
    (smallest("opt", layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine", "only true"),
    (smallest("opt", _remove_final_layer_norm=True), "_remove_final_layer_norm", "only false"),
    (smallest("mistral", sliding_window=64), "sliding_window", "contexts beyond it would be wrong"),
    (
        smallest("mistral", sliding_window="ABSENT", max_position_embeddings=8192),
        "sliding_window",
        "window of 4096",
    ),
    (smallest("qwen2", sliding_window=64, use_sliding_window=True), "sliding_window", "set max_position_embeddings"),
]


@pytest.mark.parametrize(("config", "key", "text"), BAD_CONFIGS, ids=[text for _, _, text in BAD_CONFIGS])
def test_bad_configs_name_file_key_and_cure(config: Any, key: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, config)
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert caught.value.where == (f"{path}: {key}" if key else str(path))
    assert text in str(caught.value)


UNKNOWN_NAMES = [
    ("opt-30", "unknown model 'opt-30'. Did you mean 'opt-30b'"),
    ("OPT-30B", "'opt-30b'"),
    ("facebook/opt-30b", "'opt-30b'"),
    ("meta-llama/Llama-2-7b-hf", "'llama-2-7b'"),
    ("zzzzzz", "Known: llama-2-13b"),
    ("", "unknown model ''"),
    ("\0", "unknown model"),
    ("x" * 5000, "unknown model"),
    ("nowhere/config.json", "no such model config file"),
]


@pytest.mark.parametrize(("name", "text"), UNKNOWN_NAMES, ids=[text for _, text in UNKNOWN_NAMES])
def test_unknown_names(name: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(name)
    assert text in str(caught.value)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this folder has no config\.json"):
        load_model(str(tmp_path))


def test_unknown_dtype() -> None:
    with pytest.raises(InputError, match=r"unknown dtype 'fp16'.*float16"):
        load_model("opt-125m", dtype="fp16")


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"hidden": -1},
        {"vocab": 10**7},
        {"heads": 3},
        {"ffn": "256"},
        {"tied": 1},
        {"dtype": "int8"},
        {"more": 1},
    ],
)
def test_the_spec_itself_refuses_nonsense(change: dict[str, Any]) -> None:
    plain = load_model("llama-tiny").model_dump()
    assert ModelSpec.model_validate(plain) == load_model("llama-tiny")
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(plain | change)


def test_the_planner_does_not_import_torch() -> None:
    code = "import sys, planner.model, planner.workload; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"circle|symbolic links"):
        load_model(str(tmp_path / "config.json"))

"""Model shapes: sizes, bytes and parameter counts of a decoder-only model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from planner.errors import InputError, Mistake, Mistaken, nearest
from planner.files import content_hash, real_path, validate
from planner.model_config import MAX_SIZE, Config, Dtype, Family, fields_of

ELEMENT_BYTES: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4}
CONFIG_FILE = "config.json"
BUNDLED = Path(__file__).parent / "models"


class Rope(BaseModel):
    """Rotary positions: how fast each pair of a head's elements turns."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    theta: float = Field(gt=1)
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = Field(default=1.0, ge=1)
    """Frequencies are divided by it: all of them, or with llama3 the slow ones."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    original_positions: int = Field(default=8192, gt=0, lt=MAX_SIZE)
    """llama3: turns slower than original / low are divided, faster than original / high kept, and blended between."""


class ModelSpec(BaseModel):
    """One decoder-only model: what it is made of, and how many elements and bytes that comes to."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = Field(min_length=1)
    family: Family
    layers: int = Field(gt=0, lt=MAX_SIZE)
    hidden: int = Field(gt=0, lt=MAX_SIZE)
    heads: int = Field(gt=0, lt=MAX_SIZE)
    kv_heads: int = Field(gt=0, lt=MAX_SIZE)
    head_dim: int = Field(gt=0, lt=MAX_SIZE)
    ffn: int = Field(gt=0, lt=MAX_SIZE)
    gated: bool
    """Three FFN matrices (gate, up, down) instead of two."""
    vocab: int = Field(gt=0, lt=MAX_SIZE)
    max_positions: int = Field(gt=0, lt=MAX_SIZE)
    """The most tokens of one request that the model can hold."""
    tied: bool
    """The output head is the token embedding."""
    norm: Literal["layernorm", "rmsnorm"]
    positions: Literal["learned", "rope"]
    position_offset: int = Field(ge=0, lt=MAX_SIZE)
    attention_bias: bool
    """Biases of the q, k and v projections."""
    output_bias: bool
    """Bias of the projection after attention."""
    mlp_bias: bool
    activation: str = Field(min_length=1)
    norm_eps: float = Field(gt=0, lt=1)
    rope: Rope | None = None
    qk_norm: bool = False
    """Every head of the queries and keys is normed before it is rotated."""
    dtype: Dtype
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @model_validator(mode="after")
    def _whole_groups(self) -> ModelSpec:
        if self.heads % self.kv_heads:
            what = f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly"
            raise Mistaken(Mistake("kv_heads", what, "Give a divisor of heads"))
        return self

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight or cached element."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def d_kv(self) -> int:
        """Elements of one token's K (or V) in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def d_q(self) -> int:
        """Elements of one token's queries in one layer (not always `hidden`)."""
        return self.heads * self.head_dim

    @property
    def gqa_group(self) -> int:
        """Query heads per K/V head; 1 is plain multi-head attention."""
        return self.heads // self.kv_heads

    @property
    def layer_parameters(self) -> int:
        """Elements of one decoder layer: projections, FFN, biases and both norms."""
        attention = self.hidden * (2 * self.d_q + 2 * self.d_kv)
        attention += (self.d_q + 2 * self.d_kv) * self.attention_bias + self.hidden * self.output_bias
        inputs = 2 if self.gated else 1
        mlp = (inputs + 1) * self.hidden * self.ffn + (inputs * self.ffn + self.hidden) * self.mlp_bias
        return attention + mlp + 2 * self.final_norm_parameters + 2 * self.head_dim * self.qk_norm

    @property
    def layer_bytes(self) -> int:
        """Weight bytes of one decoder layer: what it costs the link where all of it streams."""
        return self.layer_parameters * self.element_bytes

    @property
    def prefix_bytes(self) -> tuple[int, ...]:
        """Bytes of a layer's first 0, 1, ... parts, in slab order: attention, each projection into the feed-forward,
        and the one out of it with the biases. All of them are the layer."""
        inputs = 2 if self.gated else 1
        sizes = [2 * self.final_norm_parameters + self.hidden * (2 * self.d_q + 2 * self.d_kv)]
        sizes += [self.hidden * self.ffn] * inputs
        sizes += [self.layer_parameters - sum(sizes)]
        return tuple(self.element_bytes * sum(sizes[:parts]) for parts in range(len(sizes) + 1))

    @property
    def embedding_parameters(self) -> int:
        """Elements of the token embedding and, where positions are learned, of their table with its offset."""
        learned = self.max_positions + self.position_offset if self.positions == "learned" else 0
        return (self.vocab + learned) * self.hidden

    @property
    def head_parameters(self) -> int:
        """Elements of the output head; 0 when it is the token embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def final_norm_parameters(self) -> int:
        """Elements of the norm between the last layer and the head, as many as of any other norm here."""
        return self.hidden * (2 if self.norm == "layernorm" else 1)

    @property
    def parameters(self) -> int:
        """Elements of the whole model, shared ones counted once."""
        outer = self.embedding_parameters + self.head_parameters + self.final_norm_parameters
        return self.layers * self.layer_parameters + outer

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.element_bytes

    @property
    def outer_bytes(self) -> int:
        """Bytes of what is in no decoder layer (embedding, positions, final norm, head) and stays resident."""
        return self.weight_bytes - self.layers * self.layer_bytes

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes of K and V of one cached token in one layer."""
        return 2 * self.d_kv * self.element_bytes

    @property
    def act_bytes_per_token_layer(self) -> int:
        """Bytes of the K/V projection's input for one cached token in one layer."""
        return self.hidden * self.element_bytes

    @property
    def content_hash(self) -> str:
        """The same for the same shape and dtype, whatever the model is called."""
        return content_hash(self.model_dump(exclude={"name"}))


def known_models() -> list[str]:
    """The names of the bundled models, sorted."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))


def load_model(name_or_dir: str, dtype: str | None = None) -> ModelSpec:
    """The model of a bundled name, of a folder with a config.json, or of a config file; `dtype` replaces the file's.

    A bundled name wins over a folder of that name (write ./NAME for the folder). Raises InputError for an
    unknown name, and for a file that is missing, broken, or describes a model this package would get wrong.
    """
    path = _config_path(name_or_dir)
    name = real_path(path).parent.name if path.name == CONFIG_FILE else path.stem
    return validate(ModelSpec, {"name": name or str(path), **fields_of(Config(path), dtype)}, str(path))


def _config_path(name_or_dir: str) -> Path:
    known, path = known_models(), Path(name_or_dir)
    if name_or_dir in known:
        return BUNDLED / f"{name_or_dir}.json"
    try:
        is_folder, is_file = bool(name_or_dir) and path.is_dir(), path.is_file()
        has_config = is_folder and (path / CONFIG_FILE).is_file()
    except (OSError, ValueError):  # too long, not ours to look into, or characters that no path can have
        is_folder = is_file = has_config = False
    if is_folder and not has_config:
        cure = f"Give the folder that {CONFIG_FILE} is in, or a bundled name (hybridserve show models)"
        raise InputError(f"this folder has no {CONFIG_FILE}", where=name_or_dir, cure=cure)
    if is_folder or is_file or path.suffix == ".json":  # a missing file is reported where it is read
        return path / CONFIG_FILE if is_folder else path
    cure = nearest(path.name.lower(), known, f"give a folder with a {CONFIG_FILE}")
    raise InputError(f"unknown model {name_or_dir!r}", where="model", cure=cure)

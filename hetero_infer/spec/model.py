"""`ModelSpec`: the facts of a decoder model, under the field names of Hugging Face's ``config.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import read_text

REFUSED_FIELDS = ("rope_scaling", "attention_bias", "mlp_bias", "sliding_window")
POSITIVE_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
)


@dataclass(frozen=True)
class ModelSpec:
    """One Llama-style decoder. The pipeline's layers are `[embedding, decoder 0, …, decoder L-1, head]`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.model_type != "llama":
            raise InputError(f"model_type {self.model_type!r}: this version runs the 'llama' family")
        for field in POSITIVE_FIELDS:
            value = getattr(self, field)
            if type(value) not in (int, float) or not value > 0:
                raise InputError(f"{field} = {value!r}: a number above 0")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim = {self.head_dim}: rotary embeddings need an even one")

    @property
    def num_layers(self) -> int:
        """Of the pipeline: the decoder layers, the embedding and the head."""
        return self.num_hidden_layers + 2

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """`(out_features, in_features)` of each Linear of one decoder layer, by its name in the layer."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }

    @property
    def norm_elements(self) -> int:
        """Of one decoder layer: parameters that are never quantised."""
        return 2 * self.hidden_size

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value entries that one decoder layer keeps for one token."""
        return 2 * self.num_key_value_heads * self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelSpec":
        path = folder / "config.json"
        if not path.exists():
            raise InputError(f"model {folder}: no config.json there; [model] path names a Hugging Face model folder")
        try:
            content = json.loads(read_text(path, "model config"))
        except json.JSONDecodeError as error:
            raise InputError(f"model config {path}: not JSON ({error})") from error
        return cls.from_config(content, str(path))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "ModelSpec":
        for field in REFUSED_FIELDS:
            if config.get(field):
                raise InputError(f"{where}: {field} = {config[field]!r} is not supported yet")
        rope = config.get("rope_parameters") or {}  # where transformers 5 keeps what rope_theta was before
        if rope.get("rope_type", "default") != "default" or config.get("partial_rotary_factor") not in (None, 1.0):
            raise InputError(f"{where}: rope_parameters = {rope!r} or partial_rotary_factor is not supported yet")
        if config.get("hidden_act", "silu") != "silu":
            raise InputError(f"{where}: hidden_act = {config['hidden_act']!r}, the llama family uses 'silu'")
        try:
            heads = config["num_attention_heads"]
            eos = config.get("eos_token_id")
            return cls(
                model_type=config["model_type"],
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                max_position_embeddings=config["max_position_embeddings"],
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            )
        except KeyError as error:
            raise InputError(f"{where}: the field {error} is missing") from error

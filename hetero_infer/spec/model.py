"""`ModelSpec`: a decoder model in facts, whatever its family: what parts it has, their shapes, their tensors' names.

`spec/families/` makes one from a Hugging Face ``config.json``; `models/` builds the layers from it. Parts have one name
each, Llama's: `embed_tokens`, `input_layernorm`, `self_attn.q_proj`, `mlp.up_proj`, `norm`, `lm_head` …
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.errors import InputError

MOST_LAYERS = 4096
ZEROS_PER_BLOCK = 32  # of a packed Linear lie in whole words
Layer = int | Literal["embedding", "head"]  # a decoder layer by its number, or an end
# A model folder with none of them has no tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


class Linear(NamedTuple):
    """Its weight is `[out_features, in_features]`."""

    out_features: int
    in_features: int
    has_bias: bool


@dataclass(frozen=True)
class Norm:
    """RMSNorm has a weight, LayerNorm a weight and a bias, unless it is not `affine`."""

    kind: Literal["rms", "layer"]
    epsilon: float
    affine: bool = True

    def elements(self, size: int) -> int:
        return size * ({"rms": 1, "layer": 2}[self.kind] if self.affine else 0)


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: low frequencies divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., arXiv 2309.00071). `attention_factor` scales cosines and sines."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., arXiv 2104.09864) over a whole head."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None


@dataclass(frozen=True)
class LearnedPositions:
    """A table that is added to the embedding; position `p` is its row `p + offset`."""

    offset: int


@dataclass(frozen=True)
class Alibi:
    """A bias on the scores that is linear in the distance (Press et al., arXiv 2108.12409)."""


@dataclass(frozen=True)
class ModelSpec:
    """The pipeline's layers are `[embedding, decoder 0, …, decoder L-1, head]`.

    `tensors` maps each part to its tensors' stem in the model folder, with ``{}`` for the number of a decoder layer;
    a part that is not in it is a part that the model does not have. `biased` names the decoder Linears with a bias.
    `embedding_size` differs from `hidden_size` where the ends are projected. `sliding_windows[layer]` is how many of
    the newest tokens a decoder layer sees, None for all; it is empty where every layer sees all. `stored_choices` are
    those of the decoder layers where the model folder is quantised already; empty where it is not.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: Norm
    positions: Rope | LearnedPositions | Alibi
    activation: str
    embedding_size: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    tensors: Mapping[str, str]
    biased: frozenset[str] = frozenset()
    sliding_windows: tuple[int | None, ...] = ()
    norms_after: bool = False  # each norm after its residual sum, not before its block
    residual_is_normed: bool = False  # the residual of a block is its normed input
    stored_choices: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        if self.num_hidden_layers > MOST_LAYERS:
            raise InputError(f"num_hidden_layers = {self.num_hidden_layers}: at most {MOST_LAYERS}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if isinstance(self.positions, Rope) and self.head_dim % 2:
            raise InputError(f"head_dim = {self.head_dim}: rotary embeddings need an even one")

    def has(self, part: str) -> bool:
        return part in self.tensors

    @property
    def num_layers(self) -> int:
        """Of the pipeline: the decoder layers, the embedding and the head."""
        return self.num_hidden_layers + 2

    def layer_at(self, position: int) -> Layer:
        """In the pipeline."""
        if position == 0:
            return "embedding"
        return "head" if position == self.num_layers - 1 else position - 1

    def position_of(self, layer: Layer) -> int:
        if isinstance(layer, int):
            return layer + 1
        return 0 if layer == "embedding" else self.num_layers - 1

    def refuse_unlike_stored(self, layer: Layer, choice: Choice) -> None:
        """What is quantised already has no other choice than the one it is stored at."""
        if self.stored_choices:
            stored = self.stored_choices[layer] if isinstance(layer, int) else UNQUANTISED
            if choice != stored:
                name = f"decoder layer {layer}" if isinstance(layer, int) else layer
                raise InputError(
                    f"{name} at {choice}: the model is quantised already and has it at {stored}; plan again"
                )

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Those of one decoder layer, by part: what a choice below 16 bits quantises."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        shapes = {
            "self_attn.qkv_proj": (queries + 2 * keys, hidden),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {part: Linear(*shape, part in self.biased) for part, shape in shapes.items() if self.has(part)}

    @property
    def norm_elements(self) -> int:
        """Parameters of the norms of one decoder layer."""
        sizes = {
            "input_layernorm": self.hidden_size,
            "post_attention_layernorm": self.hidden_size,
            "self_attn.q_norm": self.head_dim,
            "self_attn.k_norm": self.head_dim,
        }
        return sum(self.norm.elements(size) for part, size in sizes.items() if self.has(part))

    @property
    def table(self) -> Linear:
        """The shape of the token embedding, and of the head's matrix."""
        return Linear(self.vocab_size, self.embedding_size, False)

    @property
    def head_block_rows(self) -> int:
        """Rows of a quantised head's matrix that are dequantised at once: about as many weights as `mlp.up_proj` has,
        in whole blocks of packed zeros."""
        rows = self.intermediate_size * self.hidden_size // max(self.hidden_size, self.embedding_size)
        return min(max(ZEROS_PER_BLOCK, rows // ZEROS_PER_BLOCK * ZEROS_PER_BLOCK), self.vocab_size)

    @property
    def embedding_elements(self) -> int:
        """Parameters of the embedding besides its table of tokens."""
        return self._present(
            embed_positions=self.num_positions * self.hidden_size,
            project_in=self.embedding_size * self.hidden_size,
            embed_norm=self.norm.elements(self.hidden_size),
        )

    @property
    def head_elements(self) -> int:
        """Parameters of the head besides its matrix."""
        return self._present(
            norm=self.norm.elements(self.hidden_size),
            project_out=self.embedding_size * self.hidden_size,
        )

    def _present(self, **elements: int) -> int:
        return sum(count for part, count in elements.items() if self.has(part))

    @property
    def num_positions(self) -> int:
        """Rows of the table of positions; 0 without one."""
        if isinstance(self.positions, LearnedPositions):
            return self.max_position_embeddings + self.positions.offset
        return 0

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value entries that one decoder layer keeps for one token."""
        return 2 * self.num_key_value_heads * self.head_dim

    def sliding_window(self, layer: int) -> int | None:
        return self.sliding_windows[layer] if self.sliding_windows else None

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelSpec":
        from hetero_infer.spec.families import read_model  # late: families make specs

        return read_model(folder)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> "ModelSpec":
        from hetero_infer.spec.families import spec_of

        return spec_of(config, where)

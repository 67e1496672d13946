"""`LayerDefinition`: what can be built and loaded of a model's pipeline, layer by layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from hetero_infer.models.decoder import DecoderLayer, Embedding, Head
from hetero_infer.spec import Choice, ModelSpec


@dataclass(frozen=True)
class LayerDefinition:
    """One layer of `[embedding, decoder 0, …, decoder L-1, head]`.

    `build(choice)` gives the module without weights; `stems` maps each of its parts to the stem of the part's tensors
    in the model folder; `matrices` names the parts that a choice below 16 bits replaces. Every module is called as
    `layer(hidden, batch, cache)`: `[rows, hidden_size]` to the same, except that the embedding takes token ids `[rows]`
    and the head gives logits `[rows, vocab_size]` for the rows it is given.
    """

    name: str
    build: Callable[[Choice], nn.Module]
    stems: Mapping[str, str]
    matrices: tuple[str, ...]

    def tensor(self, parameter: str) -> str:
        """The name in the model folder of ``"self_attn.q_proj.weight"``."""
        part, _, leaf = parameter.rpartition(".")
        return f"{self.stems[part]}.{leaf}"


def layers_of(spec: ModelSpec) -> list[LayerDefinition]:
    head = dict(spec.tensors)
    if spec.tie_word_embeddings:
        head["lm_head"] = spec.tensors["embed_tokens"]
    return [
        LayerDefinition("embedding", lambda choice: Embedding(spec, choice), spec.tensors, ("embed_tokens",)),
        *(_decoder(spec, index) for index in range(spec.num_hidden_layers)),
        LayerDefinition("head", lambda choice: Head(spec, choice), head, ("lm_head",)),
    ]


def _decoder(spec: ModelSpec, index: int) -> LayerDefinition:
    return LayerDefinition(
        f"decoder {index}",
        lambda choice: DecoderLayer(spec, index, choice),
        {part: stem.format(index) for part, stem in spec.tensors.items()},
        tuple(spec.linears),
    )

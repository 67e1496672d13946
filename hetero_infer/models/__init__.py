"""Decoder families, each an ordered list of layers over a KV cache of sequence slots."""

from hetero_infer.models.kv_cache import KVCache
from hetero_infer.models.layers import LayerDefinition
from hetero_infer.models.llama import llama_layers
from hetero_infer.models.micro_batch import MicroBatch
from hetero_infer.spec import ModelSpec

FAMILIES = {"llama": llama_layers}


def layers_of(spec: ModelSpec) -> list[LayerDefinition]:
    """`[embedding, decoder 0, …, decoder L-1, head]` of the model's family."""
    return FAMILIES[spec.model_type](spec)


__all__ = ["KVCache", "LayerDefinition", "MicroBatch", "layers_of"]

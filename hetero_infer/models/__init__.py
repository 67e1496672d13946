"""Decoder models as an ordered list of layers over a KV cache of sequence slots."""

from hetero_infer.models.kv_cache import KVCache
from hetero_infer.models.layers import LayerDefinition, layers_of
from hetero_infer.models.micro_batch import MicroBatch

__all__ = ["KVCache", "LayerDefinition", "MicroBatch", "layers_of"]

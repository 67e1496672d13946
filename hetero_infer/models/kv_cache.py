"""`KVCache`: keys and values of one stage's decoder layers, as an array of sequence slots."""

from collections.abc import Iterable

import torch

from hetero_infer.spec.workload import round_up_to_block


class KVCache:
    """`keys[layer]` and `values[layer]` are `[num_slots, num_key_value_heads, max_tokens, head_dim]`.

    `dtype` is also what the layers compute in.
    """

    def __init__(
        self,
        layers: Iterable[int],
        num_slots: int,
        max_tokens: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_slots = num_slots
        self.dtype = dtype
        self.max_tokens = round_up_to_block(max_tokens)
        shape = (num_slots, num_key_value_heads, self.max_tokens, head_dim)
        self.keys = {layer: torch.zeros(shape, dtype=dtype, device=device) for layer in layers}
        self.values = {layer: torch.zeros_like(keys) for layer, keys in self.keys.items()}

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for part in (self.keys, self.values) for t in part.values())

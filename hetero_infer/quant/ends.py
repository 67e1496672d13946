"""The matrices of embedding and head under a choice: torch's own at 16 bits, packed below.

Both are packed like a Linear from hidden features to tokens, and neither is ever dequantised whole: the embedding looks
up rows, the head multiplies block by block of its vocabulary.
"""

import torch
from torch import nn

from hetero_infer.quant.linear import QuantLinear
from hetero_infer.spec import Choice, ModelSpec


def embedding_for(choice: Choice, spec: ModelSpec) -> nn.Module:
    """An empty table of tokens, ready for its weights. It gives `[rows, embedding_size]` for token ids `[rows]`."""
    if choice.is_quantised:
        return QuantEmbedding(choice, spec.embedding_size, spec.vocab_size)
    return empty_table(spec.vocab_size, spec.embedding_size)


def head_for(choice: Choice, spec: ModelSpec) -> nn.Module:
    """An empty head's matrix, ready for its weights."""
    if choice.is_quantised:
        return QuantHead(choice, spec.embedding_size, spec.vocab_size, spec.head_block_rows)
    return nn.Linear(spec.embedding_size, spec.vocab_size, bias=False)


def empty_table(rows: int, size: int) -> nn.Embedding:
    """Without initial values: drawing them on the meta device makes torch import its compiler, which is 70 MiB."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size))


class QuantEmbedding(QuantLinear):
    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """In float32, whose products of codes and scales are exact: whatever it is cast to is rounded once."""
        return self.dequantised(torch.float32, token_ids).t()


class QuantHead(QuantLinear):
    """`block_rows` tokens of the vocabulary at a time; `cost/memory.py` counts one such block."""

    def __init__(self, choice: Choice, in_features: int, out_features: int, block_rows: int) -> None:
        super().__init__(choice, in_features, out_features)
        self.block_rows = block_rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        for first in range(0, self.out_features, self.block_rows):
            block = slice(first, first + self.block_rows)
            torch.mm(x, self.dequantised(x.dtype, block), out=logits[:, block])
        return logits

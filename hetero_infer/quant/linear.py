"""The Linear of a layer under a choice: torch's own at 16 bits, `QuantLinear` below."""

from collections.abc import Iterator

import torch
from torch import nn

from hetero_infer.quant.packing import CODES_PER_BLOCK, WORD_BITS, pack_codes, pad_to_block, unpack_codes
from hetero_infer.spec import Choice
from hetero_infer.spec.model import Linear

BLOCK_WEIGHTS = {"cpu": 2**16, "cuda": 2**22}  # dequantised at once: as the cache likes it, as launches cost
PACKED = ("qweight", "qzeros", "scales", "g_idx")  # the buffers of a `QuantLinear`, stored as they are
SMALLEST_SCALE = 2.0**-24  # above 0 in float16: a group of nearly 0 must not be divided by 0


def linear_for(choice: Choice, linear: Linear) -> nn.Module:
    """An empty Linear, ready for its weights."""
    if choice.is_quantised:
        return QuantLinear(choice, linear.in_features, linear.out_features, linear.has_bias)
    return nn.Linear(linear.in_features, linear.out_features, linear.has_bias)


class QuantLinear(nn.Module):
    """A Linear whose weights stay packed; a forward pass dequantises them and multiplies. A bias is not quantised.

    The buffers follow the GPTQ checkpoint convention, with K = in_features and N = out_features rounded up to 32
    where packing needs it: `qweight` int32 `[K·b/32, N]`, `qzeros` int32 `[groups, N·b/32]` holding zero - 1,
    `scales` float16 `[groups, N]`, `g_idx` int32 `[K]`.
    """

    def __init__(self, choice: Choice, in_features: int, out_features: int, has_bias: bool = False) -> None:
        super().__init__()
        self.choice = choice
        self.in_features = in_features
        self.out_features = out_features
        bits, groups = choice.bits, -(-in_features // choice.group_size)
        packed_rows = pad_to_block(in_features) * bits // 32
        packed_zeros = pad_to_block(out_features) * bits // 32
        self.register_buffer("qweight", torch.zeros(packed_rows, out_features, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, packed_zeros, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16))
        self.register_buffer("g_idx", torch.zeros(in_features, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if has_bias else None

    def dequantised(self, dtype: torch.dtype, outputs: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The weight, `[in_features, out_features]`, or only these columns of it: a slice that starts at a multiple
        of 32, or indices in any order."""
        qweight = self.qweight[:, outputs]
        weight = torch.empty(self.in_features, qweight.shape[1], dtype=dtype, device=qweight.device)
        for rows, words in self._blocks(qweight.shape[1]):
            groups, group = self.g_idx[rows].unique(return_inverse=True)  # of these rows: few
            codes = unpack_codes(qweight[words], self.choice.bits, len(group))
            weight[rows] = codes.sub_(self._zeros(groups, outputs)[group])
            weight[rows].mul_(self.scales[groups][:, outputs].to(dtype)[group])
        return weight

    def zero_points(self) -> torch.Tensor:
        """`[groups, out_features]`."""
        return self._zeros(torch.arange(len(self.qzeros)), slice(None))

    def _zeros(self, groups: torch.Tensor, outputs: slice | torch.Tensor) -> torch.Tensor:
        """`[groups, outputs]`."""
        bits, packed = self.choice.bits, self.qzeros[groups]
        if isinstance(outputs, slice):
            start, stop, _ = outputs.indices(self.out_features)
            words = slice(start * bits // WORD_BITS, pad_to_block(stop) * bits // WORD_BITS)
            stored = unpack_codes(packed[:, words].t(), bits, stop - start).t()
        else:  # of each, the 32 codes that it lies among
            words = packed.unflatten(1, (-1, bits))[:, outputs // CODES_PER_BLOCK]
            codes = unpack_codes(words.flatten(0, 1).t(), bits, CODES_PER_BLOCK)
            among = (outputs % CODES_PER_BLOCK).repeat(len(words))
            stored = codes.gather(0, among[None]).view(len(words), len(outputs))
        return stored.add(1).bitwise_and_(2**bits - 1)

    def _blocks(self, columns: int) -> Iterator[tuple[slice, slice]]:
        """Input features, and the words that hold their codes, of some `BLOCK_WEIGHTS` weights each: what is made on
        the way to a weight stays in the cache and takes little memory."""
        weights = BLOCK_WEIGHTS[self.qweight.device.type]
        count = max(CODES_PER_BLOCK, weights // columns // CODES_PER_BLOCK * CODES_PER_BLOCK)
        words = count * self.choice.bits // WORD_BITS
        for block, first in enumerate(range(0, self.in_features, count)):
            yield slice(first, first + count), slice(block * words, (block + 1) * words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, in_features]` to `[rows, out_features]`."""
        product = x @ self.dequantised(x.dtype)
        return product if self.bias is None else product + self.bias


def pack_linear(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor, bits: int
) -> dict[str, torch.Tensor]:
    """The buffers of a `QuantLinear` from a weight that already lies on its grid.

    `weight` is `[out, in]`, `scales` and `zeros` are `[out, groups]`, `g_idx` is `[in]`.
    """
    group = g_idx.long()
    scales = scales.to(torch.float16).clamp_(min=SMALLEST_SCALE)
    codes = torch.round(weight / scales.to(weight.dtype)[:, group] + zeros[:, group]).clamp_(0, 2**bits - 1)
    stored_zeros = (zeros.to(torch.int64) - 1) & (2**bits - 1)
    return {
        "qweight": pack_codes(codes.t().to(torch.int64), bits),
        "qzeros": pack_codes(stored_zeros, bits).t().contiguous(),
        "scales": scales.t().contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }

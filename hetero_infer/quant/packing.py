"""Codes of 2 to 8 bits in 32-bit words, little-endian along the first dimension: the GPTQ checkpoint convention.

Code `i` of a column takes the bits `[i·b, (i+1)·b)` of that column's bit stream. With 3 bits, 32 codes fill three words
and two of them lie across a border.
"""

import torch

WORD_BITS = 32
CODES_PER_BLOCK = 32  # whole words for every bitwidth


def pad_to_block(count: int) -> int:
    return -(-count // CODES_PER_BLOCK) * CODES_PER_BLOCK


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`[count, columns]` integers below `2**bits` to int32 `[pad(count)·bits/32, columns]`."""
    count, columns = codes.shape
    padded = torch.zeros(pad_to_block(count), columns, dtype=torch.int64, device=codes.device)
    padded[:count] = codes
    word, shift = _positions(len(padded), bits, codes.device)
    packed = torch.zeros(len(padded) * bits // WORD_BITS + 1, columns, dtype=torch.int64, device=codes.device)
    shifted = padded << shift[:, None]
    packed.index_add_(0, word, shifted & 0xFFFFFFFF)
    packed.index_add_(0, word + 1, shifted >> WORD_BITS)
    packed = packed[:-1]
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack_codes(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each column, int32 `[count, columns]`: the inverse of `pack_codes`."""
    mask = 2**bits - 1
    if WORD_BITS % bits == 0:
        shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=packed.device)
        return ((packed[:, None, :] >> shifts[None, :, None]) & mask).flatten(0, 1)[:count]
    word, shift = _positions(count, bits, packed.device)
    low_bits = torch.clamp(WORD_BITS - shift, max=bits)
    low_mask = (1 << low_bits).to(torch.int32) - 1
    codes = (packed[word] >> shift[:, None].to(torch.int32)) & low_mask[:, None]
    across = torch.nonzero(low_bits < bits).squeeze(1)
    high = packed[word[across] + 1] & (mask >> low_bits[across])[:, None].to(torch.int32)
    codes[across] |= high << low_bits[across, None].to(torch.int32)
    return codes


def _positions(count: int, bits: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Word and shift of the first bit of each code."""
    first_bit = torch.arange(count, device=device) * bits
    return first_bit // WORD_BITS, first_bit % WORD_BITS

import pytest
import torch

from hetero_infer.quant.packing import pack_codes, pad_to_block, unpack_codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 75, 128])
def test_unpacking_gives_back_what_was_packed(bits: int, count: int) -> None:
    codes = torch.randint(2**bits, (count, 7), generator=torch.Generator().manual_seed(count))
    packed = pack_codes(codes, bits)
    assert packed.shape == (pad_to_block(count) * bits // 32, 7)
    assert torch.equal(unpack_codes(packed, bits, count).long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_codes_fill_every_bit(bits: int) -> None:
    codes = torch.full((32, 1), 2**bits - 1)
    assert torch.equal(pack_codes(codes, bits), torch.full((bits, 1), -1, dtype=torch.int32))
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 32).long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_wastes_no_bit(bits: int) -> None:
    codes = torch.randint(2**bits, (96, 1))
    stream = sum(int(code) << (position * bits) for position, code in enumerate(codes.flatten()))
    words = sum(
        (int(word) & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(pack_codes(codes, bits).flatten())
    )
    assert words == stream

import pytest
import torch

from hetero_infer.quant.ends import QuantEmbedding, QuantHead
from hetero_infer.quant.linear import QuantLinear, pack_linear
from hetero_infer.quant.round_to_nearest import pack_nearest, round_to_nearest
from hetero_infer.spec import Choice
from tests.quant.test_quant_linear import ODD_SHAPES, random_grid

BITS = (3, 4, 8)
SHAPES = [*ODD_SHAPES, (64, 301, 32)]  # in, out, group size


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("size", "vocab", "group_size"), SHAPES)
def test_an_embedding_gives_the_rows_it_is_asked_for(bits: int, size: int, vocab: int, group_size: int) -> None:
    choice = Choice(bits, group_size)
    grid = random_grid(size, vocab, choice)
    embedding = QuantEmbedding(choice, size, vocab)
    embedding.load_state_dict(pack_linear(**grid, bits=bits))
    token_ids = torch.randint(vocab, (40,), generator=torch.Generator().manual_seed(0))
    for asked in (token_ids, token_ids[:1], torch.arange(vocab)):
        assert torch.equal(embedding(asked), grid["weight"][asked])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block_rows", [32, 96, 1024])
@pytest.mark.parametrize(("size", "vocab", "group_size"), SHAPES)
def test_a_head_multiplies_by_its_whole_vocabulary(
    bits: int, block_rows: int, size: int, vocab: int, group_size: int
) -> None:
    choice = Choice(bits, group_size)
    grid = random_grid(size, vocab, choice)
    head = QuantHead(choice, size, vocab, block_rows)
    head.load_state_dict(pack_linear(**grid, bits=bits))
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(x), x @ grid["weight"].t(), rtol=1e-5, atol=1e-5)


def test_neither_is_ever_dequantised_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, made = Choice(4, 32), []
    dequantised = QuantLinear.dequantised

    def spy(weight: QuantLinear, *how: object) -> torch.Tensor:
        made.append(dequantised(weight, *how))
        return made[-1]

    monkeypatch.setattr(QuantLinear, "dequantised", spy)
    QuantHead(choice, 64, 1000, block_rows=96)(torch.ones(3, 64))
    assert [weight.shape[1] for weight in made] == [96] * 10 + [40]
    made.clear()
    QuantEmbedding(choice, 64, 1000)(torch.arange(7))
    assert [weight.shape[1] for weight in made] == [7]


@pytest.mark.parametrize("bits", BITS)
def test_what_is_packed_to_nearest_is_as_near_as_rounding_makes_it(bits: int) -> None:
    choice = Choice(bits, 32)
    weight = torch.randn(50, 75, generator=torch.Generator().manual_seed(bits))
    linear = QuantLinear(choice, 75, 50)
    linear.load_state_dict(pack_nearest(weight, choice))
    moved = (linear.dequantised(torch.float32).t() - weight).abs()
    rounded = (round_to_nearest(weight, choice) - weight).abs()
    assert moved.mean() < 1.01 * rounded.mean() and moved.max() < 1.1 * rounded.max(), "but for scales in float16"

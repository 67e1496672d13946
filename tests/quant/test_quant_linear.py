import pytest
import torch

from hetero_infer.quant.linear import QuantLinear, linear_for, pack_linear
from hetero_infer.spec import UNQUANTISED, Choice
from hetero_infer.spec.model import Linear

ODD_SHAPES = [(64, 32, 32), (50, 33, 32), (100, 7, 64), (31, 65, 64), (192, 96, 128)]  # in, out, group size


def random_grid(in_features: int, out_features: int, choice: Choice, smallest_zero: int = 0) -> dict[str, torch.Tensor]:
    """A weight that lies on a random grid with scales that float16 holds, and the grid."""
    generator = torch.Generator().manual_seed(in_features)
    groups = -(-in_features // choice.group_size)
    g_idx = torch.arange(in_features) // choice.group_size
    scales = (torch.rand(out_features, groups, generator=generator) * 0.02 + 0.001).half().float()
    zeros = torch.randint(smallest_zero, 2**choice.bits, (out_features, groups), generator=generator).float()
    codes = torch.randint(2**choice.bits, (out_features, in_features), generator=generator)
    weight = scales[:, g_idx] * (codes - zeros[:, g_idx])
    return {"weight": weight, "scales": scales, "zeros": zeros, "g_idx": g_idx}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("in_features", "out_features", "group_size"), ODD_SHAPES)
def test_a_weight_on_the_grid_comes_back_exactly(
    bits: int, in_features: int, out_features: int, group_size: int
) -> None:
    choice = Choice(bits, group_size)
    grid = random_grid(in_features, out_features, choice)
    linear = linear_for(choice, Linear(out_features, in_features, False))
    linear.load_state_dict(pack_linear(**grid, bits=bits))
    assert torch.equal(linear.dequantised(torch.float32).t(), grid["weight"])


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("in_features", "out_features", "group_size"), ODD_SHAPES)
def test_forward_equals_the_product_with_the_dequantised_weight(
    bits: int, in_features: int, out_features: int, group_size: int
) -> None:
    choice = Choice(bits, group_size)
    grid = random_grid(in_features, out_features, choice)
    linear = QuantLinear(choice, in_features, out_features)
    linear.load_state_dict(pack_linear(**grid, bits=bits))
    x = torch.randn(5, in_features)
    torch.testing.assert_close(linear(x), x @ grid["weight"].t(), rtol=1e-5, atol=1e-5)


def test_groups_follow_g_idx_in_any_order() -> None:
    choice = Choice(4, 32)
    grid = random_grid(64, 32, choice)
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    grid["weight"], grid["g_idx"] = grid["weight"][:, shuffle], grid["g_idx"][shuffle]
    linear = QuantLinear(choice, 64, 32)
    linear.load_state_dict(pack_linear(**grid, bits=4))
    assert torch.equal(linear.dequantised(torch.float32).t(), grid["weight"])


def test_16_bits_is_torchs_own_linear() -> None:
    assert type(linear_for(UNQUANTISED, Linear(8, 8, False))) is torch.nn.Linear

import pytest
import torch

from hetero_infer.quant.round_to_nearest import round_to_nearest, step_sizes
from hetero_infer.spec import Choice


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_moves_a_weight_by_half_a_step_at_most(bits: int) -> None:
    choice = Choice(bits, 32)
    weight = torch.randn(5, 75, generator=torch.Generator().manual_seed(bits))
    steps = step_sizes(weight, choice).repeat_interleave(32, 1)[:, :75]
    moved = (round_to_nearest(weight, choice) - weight).abs()
    assert (moved <= steps * 1.001).all(), "a whole step where the zero point was rounded too"
    assert moved.mean() < 0.3 * steps.mean()


def test_rounding_twice_is_rounding_once() -> None:
    choice = Choice(4, 32)
    once = round_to_nearest(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), choice)
    torch.testing.assert_close(round_to_nearest(once, choice), once)


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[:, 32:] = 1.0
    torch.testing.assert_close(round_to_nearest(weight, Choice(4, 32)), weight)

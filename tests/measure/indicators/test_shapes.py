"""Each formula beside what it stands for, number by number, on a layer of two small Linears."""

import pytest
import torch
from torch import nn

from hetero_infer.checkpoint.calibration import CalibratedLayer, InputStatistics
from hetero_infer.measure.indicators.chance import random_shapes
from hetero_infer.measure.indicators.hessian import output_error
from hetero_infer.measure.indicators.variance import stochastic_variance, variance
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import Choice

CHOICE = Choice(3, 32)
ROWS = 400


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: 0.7 + torch.randn(ROWS, features, generator=generator) for name, features in (("a", 40), ("b", 64))}


@pytest.fixture
def layer(inputs: dict[str, torch.Tensor]) -> CalibratedLayer:
    torch.manual_seed(2)
    module = nn.ModuleDict({"a": nn.Linear(40, 5), "b": nn.Linear(64, 3)}).requires_grad_(False)
    statistics = {
        name: InputStatistics(2 * x.t() @ x / ROWS, x.mean().item(), x.var(correction=0).item())
        for name, x in inputs.items()
    }
    return CalibratedLayer(0, module, statistics)


def squared_steps(weight: torch.Tensor) -> float:
    """Σ over the input features of the square of the step of their group, the mean of all output channels."""
    total = 0.0
    for row in weight.tolist():
        for feature in range(len(row)):
            first = feature // 32 * 32
            group = [*row[first : first + 32], 0.0]
            total += ((max(group) - min(group)) / 7) ** 2
    return total / len(weight)


def test_the_variance_is_llm_pqs_sum_over_features(layer: CalibratedLayer, inputs: dict[str, torch.Tensor]) -> None:
    sums = {name: squared_steps(layer.module[name].weight) for name in inputs}
    nearest = sum(sums[name] * x.double().var(correction=0).item() / 4 for name, x in inputs.items())
    by_chance = sum(sums[name] * (x.double() ** 2).mean().item() / 6 for name, x in inputs.items())
    assert variance(layer, CHOICE) == pytest.approx(nearest, rel=1e-5)
    assert stochastic_variance(layer, CHOICE) == pytest.approx(by_chance, rel=1e-5)


def test_the_stochastic_form_is_the_variance_that_rounding_by_chance_adds(layer: CalibratedLayer) -> None:
    """Weights that lie anywhere between two values of the grid, inputs that are independent of each other."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(50, 32, generator=generator)
    weight[:, 0], weight[:, 1] = 0.0, 7.0  # a step of 1
    x = torch.randn(2000, 32, generator=generator)
    up = torch.rand(2000, 50, 32, generator=generator) < weight.frac()
    noise = torch.einsum("rof,rf->ro", weight.floor() + up - weight, x)
    statistics = InputStatistics(torch.eye(32), x.mean().item(), x.var().item())
    linear = nn.Linear(32, 50)
    linear.weight.data = weight
    predicted = stochastic_variance(CalibratedLayer(0, nn.ModuleDict({"a": linear}), {"a": statistics}), CHOICE)
    assert noise.var().item() == pytest.approx(predicted, rel=0.12)


def test_the_hessian_form_is_the_squared_error_of_the_outputs(
    layer: CalibratedLayer, inputs: dict[str, torch.Tensor]
) -> None:
    error = 0.0
    for name, x in inputs.items():
        weight = layer.module[name].weight
        change = x.double() @ (round_to_nearest(weight, CHOICE) - weight).double().t()
        error += change.square().sum(1).mean().item()
    assert output_error(layer, CHOICE) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("shape", [variance, stochastic_variance, output_error])
def test_more_bits_and_smaller_groups_count_less(layer: CalibratedLayer, shape) -> None:
    values = [shape(layer, choice) for choice in (Choice(3, 64), Choice(3, 32), Choice(4, 32), Choice(8, 32))]
    assert values == sorted(values, reverse=True) and values[-1] > 0


def test_chance_is_the_same_for_the_same_seed_only() -> None:
    choices = [CHOICE, Choice(4, 32)]
    assert random_shapes(3, choices, seed=5) == random_shapes(3, choices, seed=5) != random_shapes(3, choices, seed=6)

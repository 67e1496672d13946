"""LLM-PQ's indicator (arXiv 2403.01136): the variance that rounding the weights adds to a layer's outputs.

For each Linear it is `D · s² · G(X)`: D input features, s the step between two values of the grid, X the calibration
inputs, and `G = Var[X] / 4` where weights are rounded to nearest, `(E[X]² + Var[X]) / 6` where they are rounded up or
down by chance. Steps differ by group here, so `D · s²` is the sum of s² over the input features, averaged over the
output channels. A layer's value is the sum over its Linears. It has no unit that a limit could be stated in.
"""

from hetero_infer.checkpoint.calibration import CalibratedLayer, InputStatistics
from hetero_infer.quant.round_to_nearest import step_sizes
from hetero_infer.spec import Choice


def variance(layer: CalibratedLayer, choice: Choice) -> float:
    return sum(
        _sum_of_squared_steps(layer, name, choice) * inputs.variance / 4 for name, inputs in layer.statistics.items()
    )


def stochastic_variance(layer: CalibratedLayer, choice: Choice) -> float:
    return sum(
        _sum_of_squared_steps(layer, name, choice) * _second_moment(inputs) / 6
        for name, inputs in layer.statistics.items()
    )


def _second_moment(inputs: InputStatistics) -> float:
    return inputs.mean**2 + inputs.variance


def _sum_of_squared_steps(layer: CalibratedLayer, name: str, choice: Choice) -> float:
    weight = layer.module.get_submodule(name).weight
    per_feature = step_sizes(weight, choice).repeat_interleave(choice.group_size, 1)[:, : weight.shape[1]]
    return per_feature.double().square().sum(1).mean().item()

"""From the shape of a cheap indicator to nats per token, and how well that is known.

- *Scale*: for each choice all decoder layers are rounded at once, and the layers' values are scaled to sum to what that
  loses. So a uniform plan's sum is measured, not modelled, and what losses add up to beyond their sum is in it. Its
  relative standard error, over the windows of the probe, is one of all layers at that choice together.
- *Shape*: a few layers, from the first to the last, are probed alone at the coarsest choice. The spread of what they
  lose over what the scaled indicator says is taken as the relative standard error of each layer for itself.
"""

import statistics
from collections.abc import Mapping, Sequence

from hetero_infer.measure.indicators.measured import alone
from hetero_infer.measure.indicators.probes import Estimate, Probe
from hetero_infer.spec import Choice

LAYERS_ALONE = 4
SMALLEST_SHARE = 1e-6  # of the sum over the layers


def scale_probes(num_layers: int, choices: Sequence[Choice]) -> list[Probe]:
    return [*(_together(num_layers, choice) for choice in choices), *_alone(num_layers, choices)]


def scaled(
    shapes: Sequence[Sequence[float]], choices: Sequence[Choice], found: Mapping[Probe, Estimate]
) -> tuple[list[list[Estimate]], list[float]]:
    """`shapes[layer][choice]` in nats per token, each with its own standard error; and the relative standard error of
    each choice's scale."""
    sums = [found[_together(len(shapes), choice)] for choice in choices]
    columns = [_sharing(of_all.value, column) for of_all, column in zip(sums, zip(*shapes, strict=True), strict=True)]
    ratios = [
        found[probe].value / columns[choices.index(probe.choice)][probe.positions[0] - 1]
        for probe in _alone(len(shapes), choices)
    ]
    spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    rows = [[Estimate(value, spread * value) for value in row] for row in zip(*columns, strict=True)]
    return rows, [of_all.error / of_all.value if of_all.value else 0.0 for of_all in sums]


def _sharing(total: float, shape: Sequence[float]) -> list[float]:
    """`total` in proportion to the shape, of which no layer is free."""
    floor = sum(shape) * SMALLEST_SHARE or 1.0
    raised = [max(value, floor) for value in shape]
    return [total * value / sum(raised) for value in raised]


def _together(num_layers: int, choice: Choice) -> Probe:
    return Probe(tuple(range(1, 1 + num_layers)), choice)


def _alone(num_layers: int, choices: Sequence[Choice]) -> list[Probe]:
    """At the coarsest choice, whose losses stand out of the noise most."""
    coarsest = min(choices, key=lambda choice: choice.fineness)
    count = min(LAYERS_ALONE, num_layers) if coarsest.is_quantised else 0
    return [alone(round(k * (num_layers - 1) / max(1, count - 1)), coarsest) for k in range(count)]

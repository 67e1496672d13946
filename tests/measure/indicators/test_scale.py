import statistics

import pytest

from hetero_infer.measure.indicators.measured import alone
from hetero_infer.measure.indicators.probes import NOTHING, Estimate, Probe
from hetero_infer.measure.indicators.scale import scale_probes, scaled
from hetero_infer.spec import UNQUANTISED, Choice

CHOICES = (Choice(3, 64), Choice(4, 32), UNQUANTISED)
TOGETHER = [Probe((1, 2, 3, 4, 5), choice) for choice in CHOICES]
SHAPES = [[8.0, 2.0, 0.0], [4.0, 1.0, 0.0], [2.0, 0.5, 0.0], [1.0, 0.25, 0.0], [1.0, 0.25, 0.0]]
OMEGA = [0.16, 0.08, 0.04, 0.02, 0.02]
SUMS = dict(zip(TOGETHER, (Estimate(0.32, 0.08), Estimate(0.02, 0.01), NOTHING), strict=True))


def found(ratios: list[float]) -> dict[Probe, Estimate]:
    """Layers 0, 1, 3 and 4 alone lose so many times what the scaled indicator says."""
    layers = dict(zip((0, 1, 3, 4), ratios, strict=True))
    return SUMS | {alone(layer, CHOICES[0]): Estimate(r * OMEGA[layer], 0.0) for layer, r in layers.items()}


def test_the_scaled_values_sum_to_the_probes_in_the_shapes_proportions() -> None:
    rows, _ = scaled(SHAPES, CHOICES, found([1, 1, 1, 1]))
    sums = [sum(one.value for one in column) for column in zip(*rows, strict=True)]
    assert sums == pytest.approx([0.32, 0.02, 0.0])
    assert [row[0].value for row in rows] == pytest.approx(OMEGA)
    assert rows[0][1].value == pytest.approx(2 * rows[1][1].value)


def test_the_error_of_a_scale_is_that_of_its_probe() -> None:
    _, scale = scaled(SHAPES, CHOICES, found([1, 1, 1, 1]))
    assert scale == pytest.approx([0.25, 0.5, 0.0])


def test_the_error_of_a_layer_is_the_spread_of_those_probed_alone() -> None:
    ratios = [0.5, 0.9, 1.0, 0.8]
    rows, _ = scaled(SHAPES, CHOICES, found(ratios))
    for row in rows:
        for one in row:
            assert one.error == pytest.approx(statistics.stdev(ratios) * one.value)
    rows, _ = scaled(SHAPES, CHOICES, found([0.6] * 4))
    assert rows[0][0].error == pytest.approx(0), "what all have in common is no error of the shape"


def test_layers_from_the_first_to_the_last_are_probed_at_the_coarsest_choice() -> None:
    assert scale_probes(5, CHOICES) == [*TOGETHER, *(alone(layer, Choice(3, 64)) for layer in (0, 1, 3, 4))]
    (*_, one) = scale_probes(1, (Choice(3, 32), Choice(3, 64)))
    assert one == alone(0, Choice(3, 64)), "the larger group is the coarser"
    assert scale_probes(5, (UNQUANTISED,)) == [Probe((1, 2, 3, 4, 5), UNQUANTISED)]


def test_a_layer_without_a_shape_is_not_free() -> None:
    """Weights that rounding does not change."""
    rows, _ = scaled([[0.0, 0.0, 0.0], *SHAPES[1:]], CHOICES, found([1, 1, 1, 1]))
    assert rows[0][0].value > 0
    rows, _ = scaled([[0.0, 0.0, 0.0]] * 5, CHOICES, found([1, 1, 1, 1]))
    assert [row[1].value for row in rows] == pytest.approx([0.004] * 5)

"""The reference: what the model loses on the calibration text with one layer alone at one choice.

It takes a probe for every layer and choice. They share all that lies before their layer (`probes.py`), so L layers cost
half of L forward passes for each choice.
"""

from collections.abc import Mapping, Sequence

from hetero_infer.measure.indicators.probes import Estimate, Probe
from hetero_infer.spec import Choice


def probes_of_each(num_layers: int, choices: Sequence[Choice]) -> list[Probe]:
    return [alone(layer, choice) for layer in range(num_layers) for choice in choices]


def measured(num_layers: int, choices: Sequence[Choice], found: Mapping[Probe, Estimate]) -> list[list[Estimate]]:
    """`[layers][choices]`."""
    return [[found[alone(layer, choice)] for choice in choices] for layer in range(num_layers)]


def alone(layer: int, choice: Choice) -> Probe:
    return Probe((1 + layer,), choice)

"""ω of every layer and choice by one of the methods, in nats per token, with standard errors.

What comes in: the model's folder, its choices, calibration windows. What goes out: a `SensitivityTable`.

The cheap methods look at `FEW_WINDOWS` of the windows and give a shape that `scale.py` brings to the scale of a few
probes; `measured` probes everything on all windows. Embedding and head are a layer each, of which a scale leaves no
shape: under every method each of their choices is a probe. Probes round to nearest and GPTQ rounds better, so tables
tend to be too high, but for the embedding, which is rounded to nearest when it runs, too.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hetero_infer.checkpoint.calibration import CalibratedLayer, calibrate
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.indicators.chance import random_shapes
from hetero_infer.measure.indicators.fisher import fisher_losses
from hetero_infer.measure.indicators.hessian import output_error
from hetero_infer.measure.indicators.measured import measured, probes_of_each
from hetero_infer.measure.indicators.probes import Estimate, Probe, measure_increases
from hetero_infer.measure.indicators.scale import scale_probes, scaled
from hetero_infer.measure.indicators.variance import stochastic_variance, variance
from hetero_infer.spec import UNQUANTISED, Choice, InputError, SensitivityTable
from hetero_infer.spec.sensitivity import METHODS, StandardErrors

FEW_WINDOWS = 8
SHAPES: dict[str, Callable[[CalibratedLayer, Choice], float]] = {
    "variance": variance,
    "variance-stochastic": stochastic_variance,
    "hessian": output_error,
}


def measure_sensitivity(
    folder: ModelFolder,
    choices: Sequence[Choice],
    windows: CalibrationWindows,
    method: str = "variance",
    *,
    embedding_choices: Sequence[Choice] = (UNQUANTISED,),
    head_choices: Sequence[Choice] = (UNQUANTISED,),
    seed: int = 0,
) -> SensitivityTable:
    """`seed` is for the method `random`."""
    if method not in METHODS:
        raise InputError(f"sensitivity method {method!r}: this version has {', '.join(METHODS)}")
    num_layers = folder.spec.num_hidden_layers
    ends = {"embedding": (0, embedding_choices), "head": (folder.spec.num_layers - 1, head_choices)}
    of_ends = [Probe((position,), choice) for position, of_end in ends.values() for choice in of_end]
    if method == "measured":
        found = measure_increases(folder, [*probes_of_each(num_layers, choices), *of_ends], windows.token_ids)
        layers, scale = measured(num_layers, choices, found), [0.0] * len(choices)
    else:
        text = few(windows.token_ids)
        found = measure_increases(folder, [*scale_probes(num_layers, choices), *of_ends], text)
        layers, scale = scaled(shapes_by(method, folder, choices, text, seed), choices, found)
    rows = [never_better_when_coarser(row, choices) for row in layers]
    end_rows = {
        kind: dict(
            zip(of_end, never_better_when_coarser([found[Probe((position,), c)] for c in of_end], of_end), strict=True)
        )
        for kind, (position, of_end) in ends.items()
    }

    def table_of(part: Callable[[Estimate], float]) -> dict[str, Any]:
        return {
            "omega": tuple(tuple(map(part, row)) for row in rows),
            **{kind: {choice: part(one) for choice, one in of.items()} for kind, of in end_rows.items()},
        }

    return SensitivityTable(
        method=method,
        model_digest=folder.digest,
        text_digest=windows.digest,
        unit="nats per token",
        choices=tuple(choices),
        **table_of(lambda one: one.value),
        errors=StandardErrors(tuple(scale), **table_of(lambda one: one.error)),
    )


def shapes_by(
    method: str, folder: ModelFolder, choices: Sequence[Choice], text: torch.Tensor, seed: int = 0
) -> list[list[float]]:
    """`[layers][choices]` of a cheap method, on token ids `[windows, tokens]`."""
    if method == "random":
        return random_shapes(folder.spec.num_hidden_layers, choices, seed)
    if method == "fisher":
        return fisher_losses(folder, choices, text)
    layers = calibrate(folder, CalibrationWindows(text), folder.spec.num_hidden_layers)
    return [[SHAPES[method](layer, choice) if choice.is_quantised else 0.0 for choice in choices] for layer in layers]


def few(windows: torch.Tensor) -> torch.Tensor:
    """Some of them, from all over the text."""
    return windows[:: -(-len(windows) // FEW_WINDOWS)]


def never_better_when_coarser(row: Sequence[Estimate], choices: Sequence[Choice]) -> list[Estimate]:
    """Raise values where noise made a coarser choice look better than a finer one."""
    finest_first = sorted(range(len(choices)), key=lambda k: choices[k].fineness, reverse=True)
    raised = itertools.accumulate((row[k].value for k in finest_first), max)
    values = dict(zip(finest_first, raised, strict=True))
    return [Estimate(values[k], one.error) for k, one in enumerate(row)]

"""The indicator ω[layer, choice]: how much loss a choice for one layer is expected to cost.

Shape, from LLM-PQ (arXiv 2403.01136): rounding the weights of a Linear to nearest adds noise of variance
`D · s_w(b)² · Var[X]/4` to each output, with D the input features, s_w(b) the step size at b bits and X the
calibration inputs. Steps differ by group here, so `D · s²` is `Σ_input-features s²`, averaged over the output channels;
a layer's value is the sum over its Linears.

Scale: that variance has no unit a user could state a limit in. So for each choice all decoder layers are rounded to
nearest at once, the loss increase on the calibration windows is measured, and the layers' values are scaled to sum to
it: nats per token. Embedding and head are a layer each, of which a scale leaves no shape: their value is the loss
increase itself, with that end alone rounded to nearest. GPTQ rounds better than that, so the table tends to be too
high, but for the embedding, which is rounded to nearest when it runs, too. It is an expectation all the same: that
losses of layers add up, and that other text behaves like the calibration text, is assumed and not proven.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch

from hetero_infer.checkpoint.calibration import CalibratedLayer, calibrate
from hetero_infer.checkpoint.local_model import single_process_model
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.measure.perplexity import mean_loss
from hetero_infer.models import layers_of
from hetero_infer.quant.round_to_nearest import round_to_nearest, step_sizes
from hetero_infer.spec import UNQUANTISED, Choice, InputError, SensitivityTable

METHODS = ("variance",)
PROBE_WINDOWS = 8
SMALLEST_INCREASE = 1e-6  # nats per token: no choice below 16 bits is taken to be free, whatever a probe says


def measure_sensitivity(
    folder: ModelFolder,
    choices: Sequence[Choice],
    windows: CalibrationWindows,
    method: str = "variance",
    *,
    embedding_choices: Sequence[Choice] = (UNQUANTISED,),
    head_choices: Sequence[Choice] = (UNQUANTISED,),
) -> SensitivityTable:
    """ω of every layer and choice, in nats per token. The probes hold the whole model in memory."""
    if method not in METHODS:
        raise InputError(f"sensitivity method {method!r}: this version has {', '.join(METHODS)}")
    shapes = [
        [added_variance(layer, choice) if choice.is_quantised else 0.0 for choice in choices]
        for layer in calibrate(folder, windows, folder.spec.num_hidden_layers)
    ]
    probe = windows.token_ids[:PROBE_WINDOWS]
    increases = probe_increases(folder, choices, probe, range(1, folder.spec.num_layers - 1))
    totals = [sum(column) for column in zip(*shapes, strict=True)]
    scales = [
        max(increase, SMALLEST_INCREASE) / total if total else 0.0
        for increase, total in zip(increases, totals, strict=True)
    ]
    omega = [[value * scale for value, scale in zip(row, scales, strict=True)] for row in shapes]
    return SensitivityTable(
        method=method,
        model_digest=folder.digest,
        text_digest=windows.digest,
        unit="nats per token",
        choices=tuple(choices),
        omega=tuple(_never_better_with_fewer_bits(row, choices) for row in omega),
        embedding=_end_omega(folder, embedding_choices, probe, 0),
        head=_end_omega(folder, head_choices, probe, folder.spec.num_layers - 1),
    )


def added_variance(layer: CalibratedLayer, choice: Choice) -> float:
    """Σ over the Linears of D·s_w(b)²·Var[X]/4."""
    total = 0.0
    for name, statistics in layer.statistics.items():
        weight = layer.module.get_submodule(name).weight
        per_feature = step_sizes(weight, choice).repeat_interleave(choice.group_size, 1)[:, : weight.shape[1]]
        total += per_feature.double().square().sum(1).mean().item() * statistics.variance / 4
    return total


def _end_omega(
    folder: ModelFolder, choices: Sequence[Choice], probe: torch.Tensor, position: int
) -> dict[Choice, float]:
    increases = [0.0] * len(choices)
    if any(choice.is_quantised for choice in choices):
        found = probe_increases(folder, choices, probe, [position])
        increases = [
            max(value, SMALLEST_INCREASE) * choice.is_quantised for value, choice in zip(found, choices, strict=True)
        ]
    return dict(zip(choices, _never_better_with_fewer_bits(increases, choices), strict=True))


def probe_increases(
    folder: ModelFolder, choices: Sequence[Choice], windows: torch.Tensor, positions: Iterable[int]
) -> list[float]:
    """Loss increase in nats per token with the layers at these places of the pipeline rounded to nearest, for each
    choice; 0 at 16 bits."""
    model = single_process_model(folder)
    loss = mean_loss(model, windows)
    definitions = layers_of(model.spec)
    rounded = [
        model.layers[position].get_submodule(name) for position in positions for name in definitions[position].matrices
    ]
    originals = [part.weight.data for part in rounded]
    increases = []
    for choice in choices:
        if not choice.is_quantised:
            increases.append(0.0)
            continue
        for part, original in zip(rounded, originals, strict=True):
            part.weight.data = round_to_nearest(original, choice)
        increases.append(mean_loss(model, windows) - loss)
    return increases


def _never_better_with_fewer_bits(row: Sequence[float], choices: Sequence[Choice]) -> tuple[float, ...]:
    """Raise values where noise in the probes made a coarser choice look better than a finer one."""
    finest_first = sorted(range(len(choices)), key=lambda k: (-choices[k].bits, choices[k].group_size))
    raised = itertools.accumulate((row[k] for k in finest_first), max)
    return tuple(value for _, value in sorted(zip(finest_first, raised, strict=True)))

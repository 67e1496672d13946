"""The quantise step: make the shards that are missing, and only those."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn
from tqdm import tqdm

from hetero_infer.checkpoint.calibration import CalibratedLayer, calibrate
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import Recipe, ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.quant.gptq_options import DAMPING, SYMMETRIC
from hetero_infer.spec import Choice


def quantise_layers(
    folder: ModelFolder,
    wanted: Iterable[tuple[int, Choice]],
    windows: CalibrationWindows,
    checkpoint: Path,
    progress: bool = False,
) -> ShardStore:
    """See to it that `checkpoint` has a shard for every wanted `(decoder layer, choice)` below 16 bits.

    One pass over the unquantised model up to the last layer that lacks a shard, none if all are there. A shard is
    written as soon as it is made, so that work which is cut off goes on where it stood.
    """
    shards = ShardStore(checkpoint, Recipe(folder.digest, windows.digest, DAMPING, SYMMETRIC))
    quantised = {(layer, choice) for layer, choice in wanted if choice.is_quantised}
    missing = sorted((layer, choice) for layer, choice in quantised if not shards.has(layer, choice))
    if missing:
        last_layer = missing[-1][0]
        with tqdm(total=len(missing), desc="quantise", unit="layer", disable=None if progress else True) as bar:
            for layer in calibrate(folder, windows, last_layer + 1):
                for choice in [choice for index, choice in missing if index == layer.index]:
                    _quantise(layer, choice, shards)
                    bar.update()
    shards.write_recipe()
    return shards


def _quantise(layer: CalibratedLayer, choice: Choice, shards: ShardStore) -> None:
    from hetero_infer.quant.gptq import quantise_linear  # late: it takes auto-gptq and transformers with it

    tensors = {}
    for name, statistics in layer.statistics.items():
        linear = layer.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        for buffer, tensor in quantise_linear(linear.weight, statistics.hessian, choice).items():
            tensors[f"{name}.{buffer}"] = tensor
    shards.write(layer.index, choice, tensors)

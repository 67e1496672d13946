"""The quantise step: make the shards that are missing, and only those."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from hetero_infer.checkpoint.calibration import CalibratedLayer, calibrate
from hetero_infer.checkpoint.loading import load_layer
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.progress import LayerProgress
from hetero_infer.checkpoint.shards import Recipe, ShardStore
from hetero_infer.checkpoint.text import CalibrationWindows
from hetero_infer.quant.round_to_nearest import pack_nearest
from hetero_infer.spec import Choice
from hetero_infer.spec.gptq import PLAIN_GPTQ, GptqOptions
from hetero_infer.spec.model import Layer

ROWS_AT_ONCE = 2**15  # of a weight: a multiple of 32, so that blocks have whole words of zeros


def quantise_layers(
    folder: ModelFolder,
    wanted: Iterable[tuple[Layer, Choice]],
    windows: CalibrationWindows,
    checkpoint: Path,
    options: GptqOptions = PLAIN_GPTQ,
    layer_choices: Sequence[Choice] = (),
    progress: bool = False,
) -> ShardStore:
    """See to it that `checkpoint` has a shard for every wanted `(layer, choice)` below 16 bits.

    One pass over the unquantised model up to the last layer that lacks a shard, none if all are there. A shard is
    written as soon as it is made, so that work which is cut off goes on where it stood. GPTQ makes decoder layers and
    head; the embedding is rounded to nearest, because it multiplies nothing whose error other weights could make up.

    With sequential options the layers wanted are those of a plan, whose `layer_choices` are needed, and all layers
    before them are made, too: a host with the last stage of a pipeline makes every layer, as it would by itself.
    """
    shards = ShardStore(checkpoint, Recipe(folder.digest, windows.digest, options), layer_choices)
    quantised = {(layer, choice) for layer, choice in wanted if choice.is_quantised}
    if options.sequential:
        quantised = _with_layers_before(folder, quantised, layer_choices)
    missing = [(layer, choice) for layer, choice in sorted(quantised, key=str) if not shards.has(layer, choice)]
    if missing:
        last = max(folder.spec.position_of(layer) for layer, _ in missing)

        def as_chosen(position: int) -> nn.Module:
            return load_layer(folder, position, layer_choices[position], shards)

        with closing(LayerProgress(len(missing), progress)) as bar:
            for choice in _choices_of("embedding", missing):
                _round_embedding(folder, choice, shards)
                bar.advance("embedding")
            if last:
                # Late: it takes auto-gptq and transformers with it. While no layer is held: it keeps this frame.
                from hetero_infer.quant.gptq import quantise_linear

                for layer in calibrate(folder, windows, last, as_chosen if options.sequential else None):
                    for choice in _choices_of(layer.index, missing):
                        _quantise(layer, choice, shards, quantise_linear, bar.remark)
                        bar.advance(f"{layer.name} at {choice}")
                    del layer  # before the next is loaded
    shards.write_recipe()
    return shards


def _with_layers_before(
    folder: ModelFolder, wanted: Iterable[tuple[Layer, Choice]], layer_choices: Sequence[Choice]
) -> set[tuple[Layer, Choice]]:
    positions = [folder.spec.position_of(layer) for layer, _ in wanted]
    before = enumerate(layer_choices[: max(positions, default=-1) + 1])
    return {(folder.spec.layer_at(position), choice) for position, choice in before if choice.is_quantised}


def _choices_of(wanted: Layer, layers: Iterable[tuple[Layer, Choice]]) -> list[Choice]:
    return [choice for layer, choice in layers if layer == wanted]


def _quantise(
    layer: CalibratedLayer,
    choice: Choice,
    shards: ShardStore,
    quantise_linear: Callable[..., dict[str, torch.Tensor]],
    remark: Callable[[str], None],
) -> None:
    options, tensors = shards.recipe.gptq, {}
    for name, statistics in layer.statistics.items():
        weight, where = layer.module.get_submodule(name).weight, f"{layer.name}, {name}"
        pack = partial(
            quantise_linear,
            hessian=statistics.hessian,
            choice=choice,
            options=options,
            tell=lambda text, where=where: remark(f"{where}: {text}"),
        )
        packed = _in_blocks(weight, pack)
        tensors |= {f"{name}.{buffer}": tensor for buffer, tensor in packed.items()}
    shards.write(layer.index, choice, tensors)


def _round_embedding(folder: ModelFolder, choice: Choice, shards: ShardStore) -> None:
    packed = _in_blocks(load_layer(folder, 0).embed_tokens.weight, lambda rows: pack_nearest(rows, choice))
    shards.write("embedding", choice, {f"embed_tokens.{buffer}": tensor for buffer, tensor in packed.items()})


def _in_blocks(
    weight: torch.Tensor, pack: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Rows are quantised independently of each other: with many, as a vocabulary has, some at a time save memory."""
    parts = [pack(rows) for rows in weight.split(ROWS_AT_ONCE)]
    outputs = {name: torch.cat([part[name] for part in parts], 1) for name in ("qweight", "qzeros", "scales")}
    return {**outputs, "g_idx": parts[0]["g_idx"]}

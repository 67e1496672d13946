"""Models of random weights on disk, to be held and run: no calibration, and what they say means nothing."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hetero_infer.checkpoint.model_folder import INDEX
from hetero_infer.checkpoint.shards import Recipe, ShardStore
from hetero_infer.models import layers_of
from hetero_infer.quant.linear import linear_for
from hetero_infer.spec import UNQUANTISED, Choice, ModelSpec

DIGEST = "random"


def write_random_model(
    folder: Path, checkpoint: Path, config: Mapping[str, Any], decoder_choices: Iterable[Choice]
) -> ModelSpec:
    """A model folder in half precision, a file per layer, and in `checkpoint` its shards at `decoder_choices`.

    Of a quantised layer the folder has norms and biases only. All decoder layers of a choice are alike.
    """
    spec = ModelSpec.from_config(config, "random")
    folder.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards = ShardStore(checkpoint, Recipe(DIGEST, "", 0.0, False))
    file_of: dict[str, str] = {}
    codes: dict[Choice, dict[str, torch.Tensor]] = {}
    for position, choice in enumerate([UNQUANTISED, *decoder_choices, UNQUANTISED]):
        definition, file = layers_of(spec)[position], f"layer-{position:03}.safetensors"
        with torch.device("meta"):
            parameters = definition.build(choice).named_parameters()
        shapes = {definition.tensor(name): parameter.shape for name, parameter in parameters}
        tensors = {name: _weights(shape) for name, shape in shapes.items() if name not in file_of}
        save_file(tensors, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(tensors, file)
        if choice.is_quantised:
            codes.setdefault(choice, _codes(spec, choice))
            shards.write(position - 1, choice, codes[choice])
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))
    shards.write_recipe()
    return spec


def _weights(shape: torch.Size) -> torch.Tensor:
    return torch.ones(shape).half() if len(shape) == 1 else (0.02 * torch.randn(shape)).half()


def _codes(spec: ModelSpec, choice: Choice) -> dict[str, torch.Tensor]:
    """What quantising writes, but biases."""
    tensors = {}
    for part, linear in spec.linears.items():
        for name, buffer in linear_for(choice, linear).named_buffers():
            tensors[f"{part}.{name}"] = buffer
            if name in ("qweight", "qzeros"):
                buffer.random_(-(2**31), 2**31)
            elif name == "scales":
                buffer.fill_(0.05 / 2**choice.bits)
            else:
                buffer.copy_(torch.arange(linear.in_features) // choice.group_size)
    return tensors

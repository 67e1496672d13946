"""Models of random weights on disk, to be held and run: no calibration, and what they say means nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hetero_infer.checkpoint.model_folder import INDEX
from hetero_infer.checkpoint.shards import Recipe, ShardStore
from hetero_infer.models import layers_of
from hetero_infer.spec import Choice, ModelSpec
from hetero_infer.spec.gptq import PLAIN_GPTQ

DIGEST = "random"


def write_random_model(
    folder: Path, checkpoint: Path, config: Mapping[str, Any], layer_choices: Sequence[Choice]
) -> ModelSpec:
    """A model folder in half precision, a file per layer, and in `checkpoint` its shards at `layer_choices`.

    Of a quantised layer the folder has norms and biases only.
    """
    spec = ModelSpec.from_config(config, "random")
    folder.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards = ShardStore(checkpoint, Recipe(DIGEST, "", PLAIN_GPTQ))
    file_of: dict[str, str] = {}
    for position, choice in enumerate(layer_choices):
        definition, file = layers_of(spec)[position], f"layer-{position:03}.safetensors"
        with torch.device("meta"):
            module = definition.build(choice)
        shapes = {definition.tensor(name): parameter.shape for name, parameter in module.named_parameters()}
        tensors = {name: _weights(shape) for name, shape in shapes.items() if name not in file_of}
        save_file(tensors, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(tensors, file)
        if choice.is_quantised:
            shards.write(spec.layer_at(position), choice, _codes(module, choice))
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))
    shards.write_recipe()
    return spec


def _weights(shape: torch.Size) -> torch.Tensor:
    """A million numbers over and over: to draw each would take longer than to run the model."""
    if len(shape) == 1:
        return torch.ones(shape).half()
    return (0.02 * torch.randn(2**20)).half().repeat(shape.numel() // 2**20 + 1)[: shape.numel()].view(shape)


def _codes(module: nn.Module, choice: Choice) -> dict[str, torch.Tensor]:
    """What quantising writes for a module on the meta device."""
    tensors = {}
    for name, buffer in module.named_buffers():
        tensors[name] = made = torch.empty_like(buffer, device="cpu")
        match name.rpartition(".")[2]:
            case "qweight" | "qzeros":
                made.random_(-(2**31), 2**31)
            case "scales":
                made.fill_(0.05 / 2**choice.bits)
            case "g_idx":
                made.copy_(torch.arange(len(made)) // choice.group_size)
    return tensors

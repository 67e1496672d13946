"""One layer of the pipeline with its weights, reading no tensor but its own. Part of the runtime: no auto-gptq here.

A worker that has the pipeline layers `start` to `stop` of a plan does

    folder, shards = ModelFolder(model), ShardStore.of_model(checkpoint, plan.model["digest"])
    layers = [load_layer(folder, position, plan.layer_choices[position], shards) for position in range(start, stop)]
"""

from collections.abc import Mapping

import torch
from torch import nn

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.shards import ShardStore
from hetero_infer.models import layers_of
from hetero_infer.spec import UNQUANTISED, Choice, InputError


def load_layer(
    folder: ModelFolder,
    position: int,
    choice: Choice = UNQUANTISED,
    shards: ShardStore | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shared: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Layer `position` of `[embedding, decoder 0, …, decoder L-1, head]`, ready to run.

    16-bit weights, norms and biases come from the model folder, cast to `dtype`; the buffers of what is quantised
    come from `shards` as they are. Tensors are read one at a time, so no more than one is held twice. `shared` are
    parameters that another layer has already.
    """
    definition = layers_of(folder.spec)[position]
    with torch.device("meta"):
        module = definition.build(choice)
    weights = dict(shared or {})
    if choice.is_quantised:
        if shards is None:
            raise InputError(f"{definition.name} at {choice}: quantised weights are in a checkpoint folder; name one")
        packed = shards.read(folder.spec.layer_at(position), choice)
        weights |= {name: tensor.to(device) for name, tensor in packed.items()}
    for parameter in module.state_dict().keys() - weights.keys():
        weights[parameter] = folder.tensor(definition.tensor(parameter), dtype, device)
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(f"model {folder.path}: {definition.name} does not fit config.json ({error})") from error
    return module.requires_grad_(False).eval()

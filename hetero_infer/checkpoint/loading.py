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
from hetero_infer.models import LayerDefinition, layers_of
from hetero_infer.quant.linear import PACKED
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
    come from `shards` as they are, or from the model folder too, if that is where they are. Tensors are read one at a
    time, so no more than one is held twice. `shared` are parameters that another layer has already.
    """
    definition, layer = layers_of(folder.spec)[position], folder.spec.layer_at(position)
    folder.spec.refuse_unlike_stored(layer, choice)
    with torch.device("meta"):
        module = definition.build(choice)
    weights = dict(shared or {})
    if choice.is_quantised and not folder.spec.stored_choices:
        if shards is None:
            raise InputError(f"{definition.name} at {choice}: quantised weights are in a checkpoint folder; name one")
        packed = shards.read(layer, choice)
        weights |= {name: tensor.to(device) for name, tensor in packed.items()}
    for parameter, empty in module.state_dict().items():
        if parameter not in weights:
            is_packed = parameter.rpartition(".")[2] in PACKED
            weights[parameter] = folder.tensor(
                definition.tensor(parameter), empty.dtype if is_packed else dtype, device
            )
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(f"model {folder.path}: {definition.name} does not fit config.json ({error})") from error
    if choice.is_quantised and folder.spec.stored_choices:
        _refuse_odd_groups(folder, definition, module)
    return module.requires_grad_(False).eval()


def _refuse_odd_groups(folder: ModelFolder, definition: LayerDefinition, module: nn.Module) -> None:
    """Shards have a SHA-256; what others made may name groups that are not there."""
    for name in definition.matrices:
        linear = module.get_submodule(name)
        if not 0 <= linear.g_idx.min() <= linear.g_idx.max() < len(linear.scales):
            stored = definition.tensor(f"{name}.g_idx")
            raise InputError(
                f"model {folder.path}: the tensor {stored} names groups that are not among the {len(linear.scales)}"
            )

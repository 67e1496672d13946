"""The error that GPTQ minimises: `tr(ΔW · H · ΔWᵀ)` under the calibration Hessian, summed over a layer's Linears.

With H = E[x·xᵀ] that is the squared error of all outputs, per token. ΔW is what round-to-nearest changes: the same that
the probes put into the model. GPTQ's own ΔW would be nearer to what runs, and costs the quantising of every layer at
every choice, of which a plan then takes one.
"""

import torch

from hetero_infer.checkpoint.calibration import CalibratedLayer
from hetero_infer.quant.round_to_nearest import round_to_nearest
from hetero_infer.spec import Choice


def output_error(layer: CalibratedLayer, choice: Choice) -> float:
    total = 0.0
    for name, inputs in layer.statistics.items():
        weight = layer.module.get_submodule(name).weight
        change = round_to_nearest(weight, choice) - weight
        total += torch.sum(change @ inputs.hessian * change, dtype=torch.float64).item() / 2  # hessian is 2·E[x·xᵀ]
    return total

"""GPTQ (Frantar et al., arXiv 2210.17323) of one Linear, by auto-gptq's `GPTQ` class. Imported to make weights only."""

from unittest import mock

import torch
from auto_gptq.quantization.gptq import GPTQ
from torch import nn

from hetero_infer.quant.gptq_options import DAMPING, SYMMETRIC
from hetero_infer.quant.linear import pack_linear
from hetero_infer.spec import Choice


def quantise_linear(weight: torch.Tensor, hessian: torch.Tensor, choice: Choice) -> dict[str, torch.Tensor]:
    """The `QuantLinear` buffers of `weight` `[out, in]`, given `hessian` = 2·E[x·xᵀ] `[in, in]` of its inputs."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float().clone()
    gptq = GPTQ(linear)
    gptq.H = hessian.float().clone()
    gptq.nsamples = 1
    gptq.quantizer.configure(choice.bits, perchannel=True, sym=SYMMETRIC)
    with mock.patch.object(torch.cuda, "synchronize"):  # its only CUDA call; there may be no CUDA
        scales, zeros, g_idx = gptq.fasterquant(percdamp=DAMPING, group_size=choice.group_size)
    return pack_linear(linear.weight.data, scales, zeros, g_idx, choice.bits)

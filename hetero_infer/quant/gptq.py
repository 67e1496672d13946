"""GPTQ (Frantar et al., arXiv 2210.17323) of one Linear, by auto-gptq's `GPTQ` class. Imported to make weights only."""

import math
from collections.abc import Callable
from unittest import mock

import torch
from auto_gptq.quantization.gptq import GPTQ
from auto_gptq.quantization.quantizer import Quantizer
from torch import nn

from hetero_infer.quant.linear import pack_linear
from hetero_infer.spec import Choice
from hetero_infer.spec.gptq import PLAIN_GPTQ, GptqOptions

# Columns whose errors reach those after them together. A group must begin with a block: auto-gptq takes its scale from
# weights that have not heard of the errors in their own block yet.
BLOCK_COLUMNS = 128
GRID = 20  # steps from the whole range to none, of which the first 80 % are tried
MORE_DAMPING = (0.01, 0.1, 1.0)  # where the Hessian is singular with what was asked for


def quantise_linear(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    choice: Choice,
    options: GptqOptions = PLAIN_GPTQ,
    tell: Callable[[str], None] = lambda remark: None,
) -> dict[str, torch.Tensor]:
    """The `QuantLinear` buffers of `weight` `[out, in]`, given `hessian` = 2·E[x·xᵀ] `[in, in]` of its inputs.

    `tell` hears what was not done as asked. Inputs that are always 0 leave nothing to weigh their weights by: those
    are rounded to nearest, and all of them where the whole Hessian is 0.
    """
    hessian = _without_zeros(hessian.float())
    for damping in (options.damping, *(more for more in MORE_DAMPING if more > options.damping)):
        try:
            packed = _quantise(weight, hessian, choice, options, damping)
        except torch.linalg.LinAlgError:
            continue
        if damping > options.damping:
            tell(f"its Hessian is singular with damping = {options.damping:g}; {damping:g} was taken")
        return packed
    raise ValueError("the Hessian is not that of any inputs: with its mean on its diagonal it is singular")


def _quantise(
    weight: torch.Tensor, hessian: torch.Tensor, choice: Choice, options: GptqOptions, damping: float
) -> dict[str, torch.Tensor]:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float().clone()
    gptq = GPTQ(linear)
    gptq.H = hessian.clone()
    gptq.nsamples = 1
    gptq.quantizer = _WholeRange()
    gptq.quantizer.configure(choice.bits, perchannel=True, sym=options.symmetric, mse=options.search_scales, grid=GRID)
    with mock.patch.object(torch.cuda, "synchronize"):  # its only CUDA call; there may be no CUDA
        scales, zeros, g_idx = gptq.fasterquant(
            math.gcd(BLOCK_COLUMNS, choice.group_size), damping, choice.group_size, options.act_order
        )
    if not linear.weight.isfinite().all():
        raise torch.linalg.LinAlgError("the inverse overflowed")
    return pack_linear(linear.weight.data, scales, zeros, g_idx, choice.bits)


def _without_zeros(hessian: torch.Tensor) -> torch.Tensor:
    """A copy with a diagonal above 0: auto-gptq would take a feature that is always 0 to have no weights."""
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    return hessian + torch.diag(dead * (diagonal.mean() if diagonal.any() else 1.0))


class _WholeRange(Quantizer):
    """auto-gptq's symmetric grid cuts a group without negative weights at half of its range."""

    def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
        super().find_params(torch.cat([x, -x], 1) if self.sym else x, weight)

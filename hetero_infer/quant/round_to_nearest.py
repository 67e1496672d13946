"""Round-to-nearest on GPTQ's grid: each group of an output channel's weights between its minimum and maximum and 0."""

import torch
from torch.nn.functional import pad

from hetero_infer.quant.linear import pack_linear
from hetero_infer.spec import Choice


def step_sizes(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`(max - min) / (2^b - 1)` of each group of `weight` `[out, in]`: `[out, groups]`."""
    low, high = _group_range(_grouped(weight, choice))
    return (high - low) / (2**choice.bits - 1)


def round_to_nearest(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`weight` `[out, in]` moved onto the grid of `choice`."""
    step, zero = (part[..., None] for part in _grid(weight, choice))
    codes = (torch.round(_grouped(weight, choice) / step) + zero).clamp_(0, 2**choice.bits - 1)
    return (step * (codes - zero)).flatten(1)[:, : weight.shape[1]]


def pack_nearest(weight: torch.Tensor, choice: Choice) -> dict[str, torch.Tensor]:
    """The `QuantLinear` buffers of `weight` `[out, in]`, rounded to nearest."""
    groups = torch.arange(weight.shape[1]) // choice.group_size
    return pack_linear(weight, *_grid(weight, choice), groups, choice.bits)


def _grid(weight: torch.Tensor, choice: Choice) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and zero point of each group: `[out, groups]`."""
    low, _ = _group_range(_grouped(weight, choice))
    step = step_sizes(weight, choice).clamp_min(torch.finfo(weight.dtype).tiny)
    return step, torch.round(-low / step)


def _grouped(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`[out, groups, group_size]`, the last group filled up with zeros, which change no range that includes 0."""
    missing = -weight.shape[1] % choice.group_size
    return pad(weight, (0, missing)).unflatten(1, (-1, choice.group_size))


def _group_range(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)

"""Round-to-nearest on GPTQ's grid: each group of an output channel's weights between its minimum and maximum and 0."""

import torch
from torch.nn.functional import pad

from hetero_infer.spec import Choice


def step_sizes(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`(max - min) / (2^b - 1)` of each group of `weight` `[out, in]`: `[out, groups]`."""
    low, high = _group_range(_grouped(weight, choice))
    return (high - low) / (2**choice.bits - 1)


def round_to_nearest(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`weight` `[out, in]` moved onto the grid of `choice`."""
    groups = _grouped(weight, choice)
    low, _ = _group_range(groups)
    step = step_sizes(weight, choice).clamp_min(torch.finfo(weight.dtype).tiny)[..., None]
    zero = torch.round(-low[..., None] / step)
    codes = (torch.round(groups / step) + zero).clamp_(0, 2**choice.bits - 1)
    return (step * (codes - zero)).flatten(1)[:, : weight.shape[1]]


def _grouped(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """`[out, groups, group_size]`, the last group filled up with zeros, which change no range that includes 0."""
    missing = -weight.shape[1] % choice.group_size
    return pad(weight, (0, missing)).unflatten(1, (-1, choice.group_size))


def _group_range(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)

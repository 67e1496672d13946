"""Rotary positions (Su et al., arXiv 2104.09864) and the ways to stretch them."""

import math
from functools import lru_cache

import torch

from hetero_infer.spec.model import LinearScaling, Llama3Scaling, Rope, YarnScaling


@lru_cache(maxsize=4)
def rotary_table(
    rope: Rope, head_dim: int, num_positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine `[num_positions, head_dim]`, both halves alike."""
    frequency = _frequencies(rope, head_dim).to(device)
    angle = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    scale = rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling) else 1.0
    return (angle.cos() * scale).to(dtype), (angle.sin() * scale).to(dtype)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair `(x[i], x[i + head_dim/2])` of `[rows, heads, head_dim]` by its row's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def _frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair, float32 `[head_dim / 2]`."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling():
            return _llama3(plain, rope.scaling)
        case YarnScaling():
            return _yarn(plain, rope.theta, head_dim, rope.scaling)


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Wavelengths beyond the original context are divided, short ones kept, those between blended linearly in
    context / wavelength."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: torch.Tensor, theta: float, head_dim: int, scaling: YarnScaling) -> torch.Tensor:
    """ "NTK by parts": pairs that turn more than `beta_fast` times in the original context are kept, those that turn
    less than `beta_slow` times divided, a ramp over the pairs between."""

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_dim - 1)
    width = last - first or 0.001
    divided = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return plain / scaling.factor * divided + plain * (1 - divided)

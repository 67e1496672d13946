"""From logits to tokens. A token depends on its sequence's own logits, seed and position, and on nothing else."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hetero_infer.spec import InputError


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise InputError(f"temperature = {self.temperature}: a number from 0 to 100")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p = {self.top_p}: a number from 0 to 1")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed = {self.seed}: a whole number of 64 bits")


def sample(logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token per row of `logits` `[sequences, vocab_size]`; `positions` are those of the tokens to come."""
    tokens = logits.argmax(dim=-1).tolist()
    for row, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        if sampling.temperature > 0:
            tokens[row] = _draw(logits[row].double().cpu(), sampling, position)
    return tokens


def _draw(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Nucleus sampling (Holtzman et al., arXiv 1904.09751) from the fewest likeliest tokens, ≥ 1, that hold `top_p`."""
    behind = logits - logits.max()  # so that a temperature near 0 gives 0 and -inf, not inf
    probabilities, order = torch.softmax(behind / sampling.temperature, dim=-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities[1:][before[1:] >= sampling.top_p] = 0
    cumulative = probabilities.cumsum(0)
    point = _uniform(sampling.seed, position) * cumulative[-1]
    return int(order[torch.searchsorted(cumulative, point, right=True).clamp(max=len(order) - 1)])


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that the seed and the position fix."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53

"""`Regression`: seconds as a sum of terms that may not be negative, fitted to measured points wherever they lie.

The terms are LLM-PQ's: what starts once, what grows with the sequences, with the tokens, with both, and in prefill
with attention. No term below zero: more work never takes less time, also far from what was measured.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from hetero_infer.cost.interpolation import Points
from hetero_infer.spec.workload import Phase


class Regression:
    """The least relative squared error over `points`, because a layer's few ms and its few hundred matter alike.

    `tokens` are a prompt's in prefill, a cache's past in decode. A term that the measured batches and lengths cannot
    tell from simpler ones is left out: attention takes three prompt lengths. `is_determined` says whether the points
    tell the other terms apart; if not, the seconds between them are anybody's guess.
    """

    def __init__(self, points: Points, phase: Phase) -> None:
        self._phase = phase
        batches, lengths = (sorted({size[axis] for size in points}) for axis in (0, 1))
        self._only_batch, self._only_length = (axis[0] if len(axis) == 1 else 0 for axis in (batches, lengths))
        self._terms = _independent(_matrix(phase, itertools.product(batches, lengths)))
        matrix = _matrix(phase, points)[:, self._terms]
        self.is_determined = _rank(matrix) == len(self._terms)
        relative = matrix / np.array(list(points.values()))[:, None]
        scale = relative.max(axis=0)
        weights, _ = nnls(relative / scale, np.ones(len(points)))
        self._seconds_per_term: list[float] = (weights / scale).tolist()

    def seconds(self, batch: int, tokens: int) -> float:
        """Of an axis with one measured value, less than that value costs as much as it."""
        terms = _terms(self._phase, max(batch, self._only_batch), max(tokens, self._only_length))
        return sum(seconds * terms[i] for i, seconds in zip(self._terms, self._seconds_per_term, strict=True))


def _terms(phase: Phase, batch: int, tokens: int) -> tuple[float, ...]:
    """Simpler ones first."""
    if phase is Phase.PREFILL:
        return 1, batch, tokens, batch * tokens, batch * tokens**2
    return 1, batch, tokens, batch * (tokens + 1)


def _matrix(phase: Phase, sizes: Iterable[tuple[int, int]]) -> np.ndarray:
    """A row per size, a column per term."""
    return np.array([_terms(phase, *size) for size in sizes], dtype=float)


def _rank(matrix: np.ndarray) -> int:
    """With columns of one scale: a term may be a million times another."""
    return int(np.linalg.matrix_rank(matrix / np.maximum(matrix.max(axis=0), 1)))


def _independent(matrix: np.ndarray) -> list[int]:
    """The columns that no combination of earlier ones gives."""
    return [column for column in range(matrix.shape[1]) if _rank(matrix[:, : column + 1]) > _rank(matrix[:, :column])]

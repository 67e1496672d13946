"""What a choice costs in quality: prices per choice that turn the least Σω of counts into a linear bound.

For any prices v, counts n of choices over all layers have a least Σω of at least Σ v n + Σ_i min_c (ω[i, c] − v[c]):
linear-programming duality of the transport of choices to layers, so the best v make it an equality.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import csr_array

from hetero_infer.planner.fleet.rates import Floats

OPTIMAL = 0  # of linprog
MOST_PRICE = 10.0  # of the largest ω


@dataclass(frozen=True)
class QualityCut:
    """Counts within Ω keep `prices @ counts <= limit`."""

    prices: Floats
    limit: float


def quality_cut(omega: Floats, omega_limit: float, counts: Floats) -> QualityCut:
    """The cut that is tight at `counts` (which sum to the number of layers)."""
    layers, choices = omega.shape
    scale = omega.max() or 1.0
    row = np.arange(layers * choices)
    ones = np.ones(2 * len(row))
    columns = np.hstack([np.tile(np.arange(choices), layers), choices + np.repeat(np.arange(layers), choices)])
    result = linprog(
        -np.hstack([counts, np.ones(layers)]),
        csr_array((ones, (np.hstack([row, row]), columns))),
        omega.ravel() / scale,
        bounds=(-MOST_PRICE, MOST_PRICE),
        method="highs-ds",
    )
    prices = result.x[:choices] * scale if result.status == OPTIMAL else np.zeros(choices)
    return QualityCut(prices, omega_limit - float((omega - prices).min(axis=1).sum()))


def least_omega_choices(omega: Floats, counts: list[int]) -> list[int]:
    """A choice for each layer (rows of `omega`), so many of each, with least Σω."""
    pool = [choice for choice, count in enumerate(counts) for _ in range(count)]
    _, columns = linear_sum_assignment(omega[:, pool])
    return [pool[column] for column in columns]

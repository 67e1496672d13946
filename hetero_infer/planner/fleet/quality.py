"""What a choice costs in quality: prices per choice that turn the least Σω of counts into a linear bound.

For any prices v, counts n of choices over all layers have a least Σω of at least Σ v n + Σ_i min_c (ω[i, c] − v[c]):
linear-programming duality of the transport of choices to layers, so the best v make it an equality.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog

Floats = NDArray[np.float64]
MOST_PRICE = 10.0  # of the largest ω
PRICE_GROWTH, PRICE_STEPS = 1.1, 300


@dataclass(frozen=True)
class QualityCut:
    """Counts within Ω keep `prices @ counts <= limit`."""

    prices: Floats
    limit: float


def quality_cut(omega: Floats, omega_limit: float, counts: Floats) -> QualityCut:
    """The cut that is tight at `counts` (which sum to the number of layers)."""
    layers, choices = omega.shape
    scale = omega.max() or 1.0
    rows = np.hstack([np.tile(np.eye(choices), (layers, 1)), np.repeat(np.eye(layers), choices, axis=0)])
    result = linprog(
        -np.hstack([counts, np.ones(layers)]), rows, omega.ravel() / scale, bounds=(-MOST_PRICE, MOST_PRICE)
    )
    prices = np.zeros(choices) if result.x is None else result.x[:choices] * scale
    return QualityCut(prices, omega_limit - float((omega - prices).min(axis=1).sum()))


def mildest_first_omega(omega: Floats, counts: Floats) -> float:
    """Σω where the mildest layers take the fewest bits: at least the least Σω of `counts`, which may be broken."""
    order = np.argsort(-omega.sum(axis=0))
    running = np.vstack([np.zeros(len(order)), omega[np.argsort(omega.sum(axis=1), kind="stable")].cumsum(axis=0)])
    stops = np.minimum(counts[order].cumsum(), len(omega))
    begins = np.hstack([0.0, stops[:-1]])
    layers = np.arange(len(running))
    return sum(
        float(np.interp(stop, layers, running[:, choice]) - np.interp(begin, layers, running[:, choice]))
        for choice, begin, stop in zip(order, begins, stops, strict=True)
    )


def lightest_mix(omega: Floats, omega_limit: float, num_bytes: Floats) -> Floats:
    """The share of layers at each choice (`num_bytes` of each) that takes about the least memory within Ω."""
    price = 0.0
    for step in itertools.count():
        picked = (num_bytes + price * omega).argmin(axis=1)
        if omega[np.arange(len(omega)), picked].sum() <= omega_limit or step == PRICE_STEPS:
            return np.bincount(picked, minlength=len(num_bytes)) / len(omega)
        price = price * PRICE_GROWTH or num_bytes.max() / (omega.max() or 1.0) * 1e-3
    raise AssertionError


def least_omega_choices(omega: Floats, counts: list[int]) -> list[int]:
    """A choice for each layer (rows of `omega`), so many of each, with least Σω."""
    pool = [choice for choice, count in enumerate(counts) for _ in range(count)]
    _, columns = linear_sum_assignment(omega[:, pool])
    return [pool[column] for column in columns]

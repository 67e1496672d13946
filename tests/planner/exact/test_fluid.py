"""The bound of a pair holds by weak duality: it is a bound at whatever prices, and the best one at the best prices."""

import numpy as np
import pytest
from scipy.optimize import linprog

from hetero_infer.planner.exact.fluid import _dual_bound


@pytest.mark.parametrize("seed", range(20))
def test_any_prices_bound_the_programme_and_the_best_ones_meet_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, most = 6, rng.uniform(1, 3, 6)
    inside = rng.uniform(0, most)
    rows, equal = rng.normal(size=(4, columns)), rng.normal(size=(2, columns))
    programme = (rng.normal(size=columns), rows, rows @ inside + rng.uniform(0, 1, 4), equal, equal @ inside)
    result = linprog(*programme, bounds=[(0, upper) for upper in most], method="highs")
    best = _dual_bound(*programme, most, result.ineqlin.marginals, result.eqlin.marginals)
    assert best == pytest.approx(result.fun, rel=1e-9, abs=1e-9)
    for _ in range(20):
        assert _dual_bound(*programme, most, rng.normal(size=4), rng.normal(size=2)) <= result.fun

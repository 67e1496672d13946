"""`LeastOmega`: the least Σω of an interval of decoder layers, for each way of counting choices in it.

Independent of devices and micro-batches, so computed once for a request. In: ω by layer and choice. Out, by the
length of the interval: the counts (one row each, a column per choice) and the least Σω of each at every start.
"""

from collections.abc import Callable

import numpy as np

from hetero_infer.planner.exact.arrays import Bools, Floats, Integers

MOST_KEYS = 2**63  # (layers + 1) to the power of the choices numbers all ways of counting
MOST_ENTRIES = 100_000_000  # of all tables together: 800 MB


class TooManyCounts(Exception):
    """The tables would not fit memory."""


class LeastOmega:
    """`counts[length]` is [rows, choices]; `omega[length]` is [starts, rows]."""

    def __init__(self, omega: Floats, most_layers: int, fits: Callable[[Integers], Bools]) -> None:
        """Args:
        omega: [layers, choices].
        most_layers: the longest interval wanted.
        fits: which rows of counts some device can hold; fewer layers always fit where more do.
        """
        num_layers, num_choices = omega.shape
        assert (num_layers + 1) ** num_choices < MOST_KEYS, "keys are 64-bit"
        unit = np.eye(num_choices, dtype=np.int64)
        radix = (num_layers + 1) ** np.arange(num_choices, dtype=np.int64)
        self.counts: dict[int, Integers] = {0: np.zeros((1, num_choices), dtype=np.int64)}
        self.omega: dict[int, Floats] = {0: np.zeros((num_layers + 1, 1))}
        entries = 0
        for length in range(1, min(most_layers, num_layers) + 1):
            shorter = self.counts[length - 1]
            keys = np.unique(((shorter[:, None] + unit) @ radix).ravel())
            rows = (keys[:, None] // radix) % (num_layers + 1)
            kept = fits(rows)
            rows, keys = rows[kept], keys[kept]
            if not len(rows):
                break
            self.counts[length] = rows
            entries += len(rows) * (num_layers - length + 1)
            if entries > MOST_ENTRIES:
                raise TooManyCounts
            self.omega[length] = _extend(self.omega[length - 1], shorter @ radix, rows, keys, radix, omega, length)
        del self.counts[0], self.omega[0]


def _extend(
    before: Floats, shorter_keys: Integers, rows: Integers, keys: Integers, radix: Integers, omega: Floats, length: int
) -> Floats:
    """Of each row: the last layer takes one of its choices, the others are an interval one shorter."""
    starts = omega.shape[0] - length + 1
    best = np.full((starts, len(rows)), np.inf)
    for choice in range(omega.shape[1]):
        has = np.flatnonzero(rows[:, choice])
        source = np.searchsorted(shorter_keys, keys[has] - radix[choice])
        last = omega[length - 1 :, choice]
        best[:, has] = np.minimum(best[:, has], before[:starts, source] + last[:, None])
    return best

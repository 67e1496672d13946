"""`Grid`: seconds between measured points, bilinear in batch × tokens."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

Points = Mapping[tuple[int, int], float]  # (sequences in the micro-batch, tokens of each) → seconds


class Grid:
    """Seconds at every pair of a measured batch and a measured number of tokens. It passes through all of them."""

    def __init__(self, points: Points) -> None:
        self._batches, self._tokens = (sorted({size[axis] for size in points}) for axis in (0, 1))
        self._rows = [[points[batch, tokens] for tokens in self._tokens] for batch in self._batches]

    def seconds(self, batch: int, tokens: int) -> float:
        def at(row: int) -> float:
            return _along(self._tokens, self._rows[row].__getitem__, tokens)

        return _along(self._batches, at, batch)


def is_grid(points: Points) -> bool:
    """Whether every measured batch was measured at every measured number of tokens."""
    batches, lengths = ({size[axis] for size in points} for axis in (0, 1))
    return len(points) == len(batches) * len(lengths)


def _along(xs: Sequence[int], y: Callable[[int], float], x: float) -> float:
    """`y` at `x`, linear between the measured `xs`; `y(i)` belongs to `xs[i]`.

    Outside, the nearest segment goes on, within reason: upwards it never falls; downwards it never rises, and falls
    no faster than in proportion to `x`. An axis measured at one point only has no slope.
    """
    if len(xs) == 1:
        return y(0)
    i = min(max(bisect_right(xs, x) - 1, 0), len(xs) - 2)
    left, right = y(i), y(i + 1)
    slope = (right - left) / (xs[i + 1] - xs[i])
    if x >= xs[-1]:
        return right + max(slope, 0.0) * (x - xs[-1])
    if x < xs[0]:
        return max(left - max(slope, 0.0) * (xs[0] - x), left * x / xs[0])
    return left + slope * (x - xs[i])

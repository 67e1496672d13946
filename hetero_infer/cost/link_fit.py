"""A link's α and β from timed messages: the straight line that errs least, relative to each message's seconds."""

from collections.abc import Sequence

from hetero_infer.cost.holdout import HoldOut, every_second
from hetero_infer.spec.cluster import Link

Timed = tuple[int, float]  # bytes, seconds


def fit_link(points: Sequence[Timed]) -> Link:
    """Least squares of `(alpha_s + bytes / bytes_per_s) / seconds - 1`, with α ≥ 0 and β > 0.

    Relative, because a message of a few bytes and one of a few MiB matter alike: one is decode, the other prefill.
    Where no slope shows, β is at least what the largest message got.
    """
    ones = sum(1 / s**2 for _, s in points)
    mixed = sum(n / s**2 for n, s in points)
    squares = sum(n**2 / s**2 for n, s in points)
    by_one, by_bytes = sum(1 / s for _, s in points), sum(n / s for n, s in points)
    determinant = ones * squares - mixed**2
    alpha_s = (by_one * squares - by_bytes * mixed) / determinant if determinant > 0 else 0.0
    per_byte_s = (by_bytes - mixed * max(0.0, alpha_s)) / squares
    if per_byte_s <= 0:
        largest, seconds = max(points)
        per_byte_s = seconds / largest
        alpha_s = (by_one - mixed * per_byte_s) / ones
    return Link(max(0.0, alpha_s), 1 / per_byte_s)


def link_holdout(points: Sequence[Timed]) -> HoldOut | None:
    """Every second size, predicted by the line through the others."""
    held = every_second(sorted(points))
    rest = fit_link([point for point in points if point not in held])
    return HoldOut.of((rest.seconds(num_bytes), seconds) for num_bytes, seconds in held)

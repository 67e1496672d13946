"""`Fit`: a model of one set of measured points, and how well it predicts those it was not shown."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from hetero_infer.cost.holdout import HoldOut, every_second
from hetero_infer.cost.interpolation import Grid, Points, is_grid
from hetero_infer.cost.regression import Regression
from hetero_infer.spec.workload import Phase

Method = Literal["interpolation", "regression"]


@dataclass(frozen=True)
class Fit:
    """`held_out` are predicted and measured seconds of points that the same method was not shown: none where too few
    are left without them."""

    method: Method
    model: Grid | Regression
    held_out: tuple[tuple[float, float], ...]

    @property
    def holdout(self) -> HoldOut | None:
        return HoldOut.of(self.held_out)


def fits(points: Points, phase: Phase) -> tuple[Fit, ...]:
    """One for each method that the points allow, the smallest mean hold-out error first: that one is to be used.

    Interpolation takes a whole grid, regression enough points to tell its terms apart. Where nothing can be held out,
    interpolation goes first: it says at least of the measured points what was measured.
    """
    held = _to_hold_out(points)
    rest = dict(_models({size: seconds for size, seconds in points.items() if size not in held}, phase))
    found = [
        Fit(
            method,
            model,
            tuple((rest[method].seconds(*size), points[size]) for size in held) if method in rest else (),
        )
        for method, model in _models(points, phase)
    ]
    return tuple(sorted(found, key=lambda fit: fit.holdout.mean if fit.holdout else math.inf))


def _models(points: Points, phase: Phase) -> Iterator[tuple[Method, Grid | Regression]]:
    if is_grid(points):
        yield "interpolation", Grid(points)
    regression = Regression(points, phase)
    if regression.is_determined:
        yield "regression", regression


def _to_hold_out(points: Points) -> Collection[tuple[int, int]]:
    """Every second batch and length of a grid; where there is none, every second point."""
    if not is_grid(points):
        return every_second(sorted(points))
    batches, lengths = (every_second(sorted({size[axis] for size in points})) for axis in (0, 1))
    return [(batch, tokens) for batch, tokens in points if batch in batches or tokens in lengths]

"""All pipelines of a node that could still be faster than a cutoff, one by one: what bounds cannot decide.

Depth first; a beginning of a pipeline is dropped when the cheapest rest, under the prices that gave the node's bound,
does not reach the cutoff. In: a relaxed node. Out: the best found, and whether the search came to its end.
"""

import math
from dataclasses import dataclass

import numpy as np

from hetero_infer.planner.relaxation import Dual, Relaxation
from hetero_infer.planner.ring_paths import CostToGo, Hop
from hetero_infer.planner.space import Pick, Pipeline, Space
from hetero_infer.spec.workload import Phase

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE


@dataclass(frozen=True)
class Exhausted:
    """`is_complete`: nothing else in the node is faster than the cutoff."""

    found: Pipeline | None
    is_complete: bool


@dataclass(frozen=True)
class _Beginning:
    """`cost` under the prices, and the slowest stations so far (prefill, decode)."""

    picks: tuple[Pick, ...]
    used: int
    cost: float
    slowest: tuple[float, float]


def exhaust(space: Space, relaxation: Relaxation, dual: Dual, cut_s: float, most_steps: int) -> Exhausted:
    """Look at up to `most_steps` beginnings."""
    best: Pipeline | None = None
    steps = 0
    walks = relaxation.costs_to_go(dual.omega_price, dual.period_share)
    for group, (to_go, classes) in enumerate(zip(walks, space.first_groups, strict=True)):
        walk = _Walk(space, relaxation, dual, to_go, group)
        stack = [child for c in classes for child in walk.extensions(_Beginning((), 0, 0.0, (0.0, 0.0)), c, cut_s)]
        while stack:
            steps += 1
            if steps > most_steps:
                return Exhausted(best, is_complete=False)
            beginning = stack.pop()
            if beginning.picks[-1].hop.stop == space.paths.num_layers:
                pipeline = space.pipeline(beginning.picks)
                if pipeline.seconds < cut_s and space.keeps_quality(pipeline.omega):
                    best, cut_s = pipeline, pipeline.seconds
                continue
            for c in space.paths.unused(beginning.used):
                stack += walk.extensions(beginning, c, cut_s)
    return Exhausted(best, is_complete=True)


class _Walk:
    """Extends beginnings, for one group of first stages."""

    def __init__(self, space: Space, relaxation: Relaxation, dual: Dual, to_go: CostToGo, group: int) -> None:
        self._space = space
        self._relaxation = relaxation
        self._share = dual.period_share
        self._to_go = to_go
        self._prices = relaxation.prices(dual.omega_price, dual.period_share)
        self._credit = dual.omega_price * space.omega_limit if dual.omega_price else 0.0
        self._group = group

    def extensions(self, beginning: _Beginning, device_class: int, cut_s: float) -> list[_Beginning]:
        """By one stage on the class, whatever could be faster than the cutoff; the most promising last."""
        start = beginning.picks[-1].hop.stop if beginning.picks else 0
        found: list[tuple[float, _Beginning]] = []
        for length in self._relaxation.lengths(device_class, self._space.paths.num_layers - start):
            found += self._by(beginning, Hop(device_class, start, start + length), cut_s)
        return [child for _, child in sorted(found, key=lambda one: -one[0])]

    def _by(self, beginning: _Beginning, hop: Hop, cut_s: float) -> list[tuple[float, _Beginning]]:
        paths, to_go = self._space.paths, self._to_go
        used = paths.with_one_more(beginning.used, hop.device_class)
        alike = paths.sends_alike[hop.device_class]
        arriving = 0.0
        if beginning.picks:
            arriving = float(to_go.send[paths.sends_alike[beginning.picks[-1].hop.device_class], hop.device_class])
        rest = float(to_go.go[used, alike, hop.stop])
        if hop.stop == paths.num_layers:
            rest = float(to_go.back[alike]) if beginning.picks else 0.0
            rest = rest if to_go.can_end[used] else math.inf
        base = beginning.cost + arriving
        if not math.isfinite(base + rest):
            return []
        options = self._relaxation.options(hop)
        costs = base + options.costs(self._prices)
        slowest = [np.maximum(beginning.slowest[k], options.seconds[phase]) for k, phase in enumerate((PREFILL, DECODE))]
        bounds = costs + rest - self._credit + self._relaxation.floors_s(self._share, slowest[0], slowest[1])
        return [
            (
                float(bounds[row]),
                _Beginning(
                    (*beginning.picks, self._relaxation.pick(hop, row)),
                    used,
                    float(costs[row]),
                    (float(slowest[0][row]), float(slowest[1][row])),
                ),
            )
            for row in map(int, np.flatnonzero(bounds < cut_s))
        ]

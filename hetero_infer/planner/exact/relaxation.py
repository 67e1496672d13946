"""`Relaxation`: a lower bound on a node by Lagrangian duality, and the plans met on the way.

Σω ≤ Ω gets a price λ, and max(md·M, L) is a mix θ·md·M + (1 − θ)·L. Under such prices the best plan is a shortest
path, so every pair (λ, θ) bounds the node from below, and the best pair is found by Kelley's cutting planes (1960):
each path is a plane, and the next prices are where the planes known so far allow most.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog

from hetero_infer.planner.exact.arrays import Floats
from hetero_infer.planner.exact.ring_paths import CostToGo, Hop
from hetero_infer.planner.exact.space import Node, Pick, Pipeline, Space
from hetero_infer.planner.exact.stage_options import Caps, IntervalOptions, Prices, Selection
from hetero_infer.spec.workload import Phase

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
MOST_CUTS = 12
MOST_PRICE = 1e6  # of Ω, in typical totals


@dataclass(frozen=True)
class Dual:
    """`bound_s` at the prices that gave it; `weights` of the paths of a fractional best."""

    bound_s: float
    omega_price: float
    period_share: float
    weights: Sequence[tuple[float, Pipeline]]


class Relaxation:
    """Of one node. `pool` are plans of the same space; those within the node's caps are used, and new ones added."""

    def __init__(self, space: Space, node: Node, pool: list[Pipeline]) -> None:
        self._space = space
        self._node = node
        self._pool = pool
        self._selections = [Selection(options, Caps(node.caps)) for options in space.options]
        self._send, self._back = (
            {phase: np.where(wires[phase] <= node.caps[phase], wires[phase], np.inf) for phase in Phase}
            for wires in (space.wires.send, space.wires.back)
        )
        self._options: dict[Hop, IntervalOptions] = {}

    @property
    def pool(self) -> list[Pipeline]:
        """Those inside the node, but for its floors."""
        node = self._node
        return [
            pipeline
            for pipeline in self._pool
            if all(pipeline.slowest[p] <= node.caps[p] for p in Phase)
            and all(pipeline.num_on(c) in use for c, use in enumerate(node.uses))
        ]

    def can_keep_quality(self) -> bool:
        """Whether any plan within the caps has Σω ≤ Ω."""
        space = self._space
        if not space.is_limited or any(space.keeps_quality(pipeline.omega) for pipeline in self.pool):
            return True
        least = self._shortest(Prices(dict.fromkeys(Phase, 0.0), 1.0))
        if least is None or not space.keeps_quality(least.omega):
            return False
        self._pool.append(least)
        return True

    def dual(self, cut_s: float, tolerance_s: float) -> Dual:
        """The best bound, or the first that reaches `cut_s`. Infinite where the caps leave no plan at all."""
        best = Dual(-math.inf, self._node.omega_price, self._node.period_share, ())
        omega_price, period_share = best.omega_price, best.period_share
        if planes := self.pool:
            ceiling_s, omega_price, period_share, _ = self._master(planes)
        for _ in range(MOST_CUTS):
            path = self._shortest(self.prices(omega_price, period_share))
            if path is None:
                return Dual(math.inf, omega_price, period_share, ())
            bound_s = self._plane(path, omega_price, period_share)
            if bound_s > best.bound_s:
                best = Dual(bound_s, omega_price, period_share, ((1.0, path),))
            if bound_s >= cut_s:
                return best
            self._pool.append(path)
            ceiling_s, omega_price, period_share, weights = self._master(self.pool)
            best = Dual(best.bound_s, best.omega_price, best.period_share, weights)
            if ceiling_s - best.bound_s <= tolerance_s:
                break
        return best

    def costs_to_go(self, omega_price: float, period_share: float) -> list[CostToGo]:
        """By group of first stages."""
        return list(self._costs_to_go(self.prices(omega_price, period_share)))

    def floors_s(self, period_share: float, prefill_s: Floats | float = 0.0, decode_s: Floats | float = 0.0) -> Any:
        """What the slowest stations take at least, also where stations of `prefill_s` and `decode_s` are there."""
        form, floors = self._space.objective, self._node.floors
        weight = form.slowest[DECODE] + period_share * form.rounds * form.micro_batches[DECODE]
        return form.slowest[PREFILL] * np.maximum(floors[PREFILL], prefill_s) + weight * np.maximum(
            floors[DECODE], decode_s
        )

    def options(self, hop: Hop) -> IntervalOptions:
        """What can stand on a class and an interval, within the caps."""
        if hop not in self._options:
            self._options[hop] = self._selections[hop.device_class].of(hop)
        return self._options[hop]

    def pick(self, hop: Hop, row: int) -> Pick:
        """One of the options."""
        options = self.options(hop)
        return Pick(
            hop,
            tuple(map(int, options.counts[row])),
            options.ends[options.which_ends[row]],
            {phase: float(options.seconds[phase][row]) for phase in Phase},
            float(options.omega[row]),
        )

    def prices(self, omega_price: float, period_share: float) -> Prices:
        objective = self._space.objective
        decode = objective.passes[DECODE] + (1 - period_share) * objective.rounds
        return Prices({PREFILL: objective.passes[PREFILL], DECODE: decode}, omega_price)

    def _plane(self, path: Pipeline, omega_price: float, period_share: float) -> float:
        """The Lagrangian of a path: a lower bound on all plans of the node if no other path has less."""
        prices = self.prices(omega_price, period_share)
        additive = sum(prices.seconds[phase] * path.passes[phase] for phase in Phase)
        excess = omega_price * (path.omega - self._space.omega_limit) if omega_price else 0.0
        return additive + excess + float(self.floors_s(period_share))

    def _master(self, planes: Sequence[Pipeline]) -> tuple[float, float, float, list[tuple[float, Pipeline]]]:
        """The prices at which the planes allow the highest bound, that bound, and the weights of the planes there."""
        space, objective = self._space, self._space.objective
        values = [self._plane(path, 0.0, 0.0) for path in planes]
        scale_s = max(abs(value) for value in values) or 1.0
        floor = objective.micro_batches[DECODE] * self._node.floors[DECODE]
        slopes = [objective.rounds * (floor - path.passes[DECODE]) for path in planes]
        if space.is_limited:
            omega_scale = max(space.omega_limit, max(path.omega for path in planes)) or 1.0
            excess = [(path.omega - space.omega_limit) / omega_scale for path in planes]
        else:
            omega_scale, excess = 1.0, [0.0] * len(planes)
        rows = np.array([[1.0, -e, -s / scale_s] for e, s in zip(excess, slopes, strict=True)])
        most_price = MOST_PRICE if space.is_limited else 0.0
        result = linprog(
            [-1.0, 0.0, 0.0],
            rows,
            np.array(values) / scale_s,
            bounds=[(None, None), (0.0, most_price), (0.0, 1.0)],
            method="highs",
        )
        if result.x is None:
            return math.inf, self._node.omega_price, self._node.period_share, []
        top, price, share = result.x
        weights = [(-float(w), path) for w, path in zip(result.ineqlin.marginals, planes, strict=True) if w < -1e-9]
        return float(top) * scale_s, float(price) * scale_s / omega_scale, float(share), weights

    def _costs_to_go(self, prices: Prices) -> Iterator[CostToGo]:
        stages = [selection.costs(prices) for selection in self._selections]

        def wires(of: dict[Phase, np.ndarray]) -> np.ndarray:
            blocked = np.isinf(of[PREFILL]) | np.isinf(of[DECODE])
            total = sum(prices.seconds[phase] * np.where(blocked, 0.0, of[phase]) for phase in Phase)
            return np.where(blocked, np.inf, total)

        send, back = wires(self._send), wires(self._back)
        for group in range(len(self._space.first_groups)):
            yield self._space.paths.cost_to_go(stages, send, back[group], self._node.uses)

    def _shortest(self, prices: Prices) -> Pipeline | None:
        """The cheapest path under `prices`."""
        found = [
            to_go.cheapest(group)
            for to_go, group in zip(self._costs_to_go(prices), self._space.first_groups, strict=True)
        ]
        _, hops = min(found, key=lambda one: one[0])
        if not hops:
            return None
        rows = [int(np.argmin(self.options(hop).costs(prices))) for hop in hops]
        return self._space.pipeline([self.pick(hop, row) for hop, row in zip(hops, rows, strict=True)])

"""`FleetBound`: how fast no fleet can be, over all ways to cut the devices into replicas and to plan each.

A claim "nobody serves the batch in T seconds" is proven by prices: with devices priced so that all together cost 1, no
replica that ends within T serves a sequence for less than 1/B. Cells of replicas (`relaxation.py`) are split where
they are cheapest, and prices move towards those that make the cheapest dearest. docs/planner.md has the proof.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linprog

from hetero_infer.planner.fleet.rates import Floats, Rates
from hetero_infer.planner.fleet.relaxation import Cell, Relaxation
from hetero_infer.spec.workload import Phase

SOLVES_PER_PRICES = 48
PATIENCE = 0.5  # of the time left, for one claim


@dataclass(order=True)
class _Leaf:
    """`price` is per sequence, a lower bound at the prices of `turn`."""

    price: float
    number: int
    cell: Cell = field(compare=False)
    turn: int = field(compare=False)
    devices: Floats = field(compare=False)


class FleetBound:
    def __init__(self, rates: Rates, replicas: int | None = None) -> None:
        self.rates = rates
        self.relaxation = Relaxation(rates)
        self.num_solves = 0
        self._replicas = replicas
        self._batch_size = rates.request.workload.batch_size
        self._full_rounds = max(0, rates.request.workload.new_tokens - 2)
        speed = 1 / np.prod([rates.layer_s[phase][:, :, 1].min(axis=1) for phase in Phase], axis=0)
        self._prices = speed / (speed @ rates.counts)
        self._turn = 0
        self._numbers = itertools.count()
        self._cells: list[Cell] = []

    def seconds(self, upper_s: float, *, deadline_s: float, gap: float) -> float:
        """No fleet takes less; `upper_s` is what a known fleet takes. At the deadline, what was proven by then."""
        self._cells = [
            Cell(
                (1, self._batch_size),
                (1, self._batch_size),
                (0.0, upper_s),
                (0.0, upper_s / max(1, self._full_rounds)),
            )
        ]
        proven_s, claim_s = 0.0, 0.75 * upper_s
        while proven_s < upper_s * (1 - gap) and (now_s := time.monotonic()) < deadline_s:
            if self._is_too_short(claim_s, now_s + PATIENCE * (deadline_s - now_s)):
                proven_s, claim_s = claim_s, (claim_s + upper_s) / 2
            else:
                claim_s = (proven_s + claim_s) / 2
        return proven_s

    def _is_too_short(self, limit_s: float, deadline_s: float) -> bool:
        """Whether it is proven that the batch cannot be served within `limit_s`."""
        leaves = [_Leaf(0.0, next(self._numbers), cell, -1, np.zeros(0)) for cell in self._cells]
        solves = 0
        while leaves[0].price * self._batch_size <= 1 and time.monotonic() < deadline_s:
            if leaves[0].turn == self._turn and solves >= max(SOLVES_PER_PRICES, len(leaves)):
                self._move_prices(leaves)
                solves = 0
                continue
            leaf = heapq.heappop(leaves)
            cells = self._split(leaf.cell, limit_s) if leaf.turn == self._turn else (leaf.cell,)
            for cell in cells:
                heapq.heappush(leaves, self._leaf(cell, limit_s))
            solves += len(cells)
        self._cells = [leaf.cell for leaf in leaves]
        return leaves[0].price * self._batch_size > 1

    def _leaf(self, cell: Cell, limit_s: float) -> _Leaf:
        self.num_solves += 1
        cheapest = self.relaxation.cheapest(cell, self._prices, limit_s)
        return _Leaf(cheapest.price, next(self._numbers), cell, self._turn, cheapest.devices)

    def _move_prices(self, heap: list[_Leaf]) -> None:
        """Towards those at which the cheapest of the leaves' replicas is dearest."""
        known = [leaf.devices for leaf in heap if len(leaf.devices)]
        used = np.array(known)
        kinds = used.shape[1]
        result = linprog(
            np.array([*np.zeros(kinds), -1.0]),
            np.hstack([-used, np.ones((len(used), 1))]),
            np.zeros(len(used)),
            np.array([[*self.rates.counts, 0.0]]),
            np.array([1.0]),
            method="highs-ds",
        )
        prices = (self._prices + result.x[:-1]) / 2
        least = np.min(np.where(self._prices > 0, prices / np.maximum(self._prices, 1e-300), 1.0))
        for leaf in heap:
            leaf.price *= least
        heapq.heapify(heap)
        self._prices = prices
        self._turn += 1

    def _split(self, cell: Cell, limit_s: float) -> tuple[Cell, ...]:
        """In two, where the range is widest for its weight in the time."""
        (b1, b2), (m1, m2) = cell.sequences, (cell.decode_micro_batches[0], min(cell.decode_micro_batches[1], cell.sequences[1]))
        (a1, a2), (d1, d2) = cell.busy_s, cell.round_s
        widths = {
            "sequences": 0.3 * math.log(b2 / b1),
            "decode_micro_batches": 0.4 * math.log(m2 / m1),
            "busy_s": 0.7*(a2 - a1) / limit_s,
            "round_s": 0.3*max(1, self._full_rounds) * (d2 - d1) / limit_s,
        }
        widest = max(widths, key=widths.__getitem__)
        low, high = {"sequences": (b1, b2), "decode_micro_batches": (m1, m2), "busy_s": (a1, a2), "round_s": (d1, d2)}[widest]
        if widest in ("sequences", "decode_micro_batches"):
            middle = min(max(low, int(math.sqrt(low * high))), high - 1)
            halves = ((low, middle), (middle + 1, high))
        else:
            halves = ((low, (low + high) / 2), ((low + high) / 2, high))
        return tuple(replace(cell, **{widest: half}) for half in halves)


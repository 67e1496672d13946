"""`FleetBound`: how fast no fleet can be, over all ways to cut the devices into replicas and to plan each.

The claim "nobody serves the batch of B in T seconds" is proven by prices: with devices priced so that all together cost
1, no replica that ends within T serves a sequence for 1/B or less. Cells of replicas (`relaxation.py`) are split where
they are cheapest, and prices move towards those at which the cheapest is dearest. docs/planner.md has the proof.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from hetero_infer.planner.fleet.linear_program import minimise
from hetero_infer.planner.fleet.quality import Floats
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.relaxation import Cell, Relaxation
from hetero_infer.spec.workload import Phase

FIRST_CLAIM = 0.85  # of what a known fleet takes
BOLDNESS = 0.2  # of the way to it, for the next claim
PATIENCE = 0.5  # of the time left, for one claim
SOLVES_PER_PRICES = 48
WORTH_A_MOVE = 2e-3  # that the cheapest replica may become dearer by
LEAST_PRICE = 1e-4  # of all devices of a kind: for nothing a replica would take as many as there are
# How much a range's width counts when a cell is split: of seconds as a share of the limit, else in logarithms.
WEIGHTS = {"sequences": 0.3, "decode_micro_batches": 0.4, "busy_s": 6.0, "round_s": 0.3}


@dataclass(order=True)
class _Leaf:
    """`price` of a sequence is a lower bound; it was worked out in `turn`, for `devices` per sequence."""

    price: float
    number: int
    cell: Cell = field(compare=False)
    turn: int = field(compare=False, default=-1)
    devices: Floats = field(compare=False, default_factory=lambda: np.zeros(0))


class FleetBound:
    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._relaxation = Relaxation(rates)
        self._batch_size = rates.request.workload.batch_size
        self._rounds = max(1, rates.request.workload.new_tokens - 1)
        speed = 1 / np.prod([rates.layer_s[phase][:, :, 1].min(axis=1) for phase in Phase], axis=0)
        self._prices = speed / (speed @ rates.counts)
        self._turn = 0  # of the prices
        self._numbers = itertools.count()
        self._cells: list[Cell] = []

    def seconds(self, upper_s: float, *, deadline_s: float, gap: float) -> float:
        """No fleet takes less. `upper_s` is what a known fleet takes; stops within `gap` of it or at the deadline."""
        sizes = (1, self._batch_size)
        self._cells = [Cell(sizes, sizes, (0.0, upper_s), (0.0, upper_s / self._rounds))]
        proven_s, claim_s = 0.0, FIRST_CLAIM * upper_s
        while proven_s < upper_s * (1 - gap) and (now_s := time.monotonic()) < deadline_s:
            if self._is_too_short(claim_s, now_s + PATIENCE * (deadline_s - now_s)):
                proven_s, claim_s = claim_s, claim_s + BOLDNESS * (upper_s - claim_s)
            else:
                claim_s = (proven_s + claim_s) / 2
        return proven_s

    def _is_too_short(self, limit_s: float, deadline_s: float) -> bool:
        """Whether it is proven that the batch cannot be served within `limit_s`. Keeps the cells for the next claim."""
        leaves = [_Leaf(0.0, next(self._numbers), cell) for cell in self._cells]
        solves = 0
        while leaves[0].price * self._batch_size <= 1 and time.monotonic() < deadline_s:
            if leaves[0].turn == self._turn and solves >= max(SOLVES_PER_PRICES, len(leaves)):
                self._move_prices(leaves)
                solves = 0
                continue
            leaf = heapq.heappop(leaves)
            cells = self._split(leaf.cell, limit_s) if leaf.turn == self._turn else (leaf.cell,)
            for cell in cells:
                cheapest = self._relaxation.cheapest(cell, self._prices, limit_s)
                price = max(leaf.price, cheapest.price)  # what holds for all of a cell holds for a part of it
                heapq.heappush(leaves, _Leaf(price, next(self._numbers), cell, self._turn, cheapest.devices))
            solves += len(cells)
        self._cells = [leaf.cell for leaf in leaves]
        return leaves[0].price * self._batch_size > 1

    def _move_prices(self, leaves: list[_Leaf]) -> None:
        """Half way to those at which the cheapest of the leaves' replicas is dearest, where that promises something.

        A leaf's price stays a bound when it falls as much as the price of a device falls most, or by what the devices
        that got cheaper save when it has all of them.
        """
        used = np.array([leaf.devices for leaf in leaves if leaf.devices.any()])
        counts = self._rates.counts
        rows = np.vstack([np.hstack([used, -np.ones((len(used), 1))]), [*counts, 0.0]])
        at_least = np.array([0.0] * len(used) + [1.0])
        at_most = np.array([math.inf] * len(used) + [1.0])
        dearest = minimise(np.array([0.0] * used.shape[1] + [-1.0]), rows, at_least, at_most)
        if dearest is None or -dearest.value < leaves[0].price * (1 + WORTH_A_MOVE):
            return
        prices = np.maximum((self._prices + dearest.x[:-1]) / 2, LEAST_PRICE / counts)
        prices /= prices @ counts
        fall = float((prices / self._prices).min())
        saved = float(np.maximum(0, self._prices - prices) @ counts)
        for leaf in leaves:
            leaf.price = max(leaf.price * min(1.0, fall), leaf.price - saved / leaf.cell.sequences[0])
        heapq.heapify(leaves)
        self._prices = prices
        self._turn += 1

    def _split(self, cell: Cell, limit_s: float) -> tuple[Cell, Cell]:
        """In two, where the range is widest."""
        micro_batches = cell.decode_micro_batches[0], min(cell.decode_micro_batches[1], cell.sequences[1])
        whole = {"sequences": cell.sequences, "decode_micro_batches": micro_batches}
        seconds = {"busy_s": cell.busy_s, "round_s": cell.round_s}
        widths = {name: math.log(high / low) for name, (low, high) in whole.items()}
        widths |= {name: (high - low) / limit_s for name, (low, high) in seconds.items()}
        widths["round_s"] *= self._rounds
        widest = max(widths, key=lambda name: WEIGHTS[name] * widths[name])
        halves: tuple[tuple[float, float], tuple[float, float]]
        if widest in whole:
            low, high = whole[widest]
            middle = max(low, min(high - 1, math.isqrt(low * high)))
            halves = (low, middle), (middle + 1, high)
        else:
            start, stop = seconds[widest]
            halves = (start, (start + stop) / 2), ((start + stop) / 2, stop)
        first, second = (replace(cell, **{widest: half}) for half in halves)  # type: ignore[arg-type]
        return first, second

"""A good pipeline of given devices for a share of the batch, in well under a second: the fleet planner's oracle.

For micro-batch sizes and caps on the slowest stage of each phase, every device picks a pattern, and a dynamic programme
over the layers finds the patterns of least seconds once round the ring and least quality loss together, at a price for
the loss. Caps, price and sizes are searched over. No proof comes with it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.cost.timeline import PhaseCosts, decode_seconds, prefill_seconds
from hetero_infer.planner.fleet.patterns import PatternBook, Sizes, Table
from hetero_infer.planner.fleet.quality import Floats, least_omega_choices
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.workload import Phase

CAP_STEPS = (0.75, 0.92, 0.975)  # by which a cap shrinks
SLACK = (1.0, 1.02, 1.06, 1.15, math.inf)  # of caps, until the exact loss finds a plan within them
SIZE_FACTORS = (2.0, 1.3)
FIRST_PRICE, MOST_PRICE, BRACKET = 1.0, 1e9, 2.0  # seconds for a unit of ω
PRICE_STEPS = 2
LEVELS, SPREAD = 8, 0.5  # alike devices value quality a little differently: or all would change their choice at once
FEW_LAYERS = 8  # the exact loss from the start
SAME = 1 + 1e-12


@dataclass(frozen=True)
class Stage:
    """`choices` of its decoder layers in order, as positions in `PlanRequest.choices`."""

    kind: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Pipeline:
    """`seconds` is its closed form for `share` sequences, with the default link between any two devices."""

    share: int
    sizes: Sizes
    stages: tuple[Stage, ...]
    seconds: float


class _Pick(NamedTuple):
    """A device's pattern, by its row, from layer `first` on."""

    table: Table
    row: int
    first: int

    @property
    def seconds(self) -> tuple[float, float]:
        return self.table.prefill_s[self.row], self.table.decode_s[self.row]

    @property
    def exact_loss(self) -> float:
        return float(self.table.patterns.exact_loss[self.first, self.row])

    @property
    def expected_loss(self) -> float:
        return float(self.table.patterns.expected_loss[self.row])


_Picks = list[_Pick]  # empty where there is no plan
_Caps = tuple[float, float]  # seconds of the slowest stage in prefill and in decode


class PipelineSearch:
    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._num_layers = len(rates.omega)
        self._limit = rates.request.omega_limit
        self._rounds = rates.request.workload.new_tokens - 1
        self._price = FIRST_PRICE
        self._book = PatternBook(rates)
        self._windows = cache(self._all_windows)

    def best(self, devices: tuple[int, ...], share: int) -> Pipeline | None:
        """With `devices[kind]` of each kind, some of which it may leave out; None where it finds nothing."""
        found: dict[Sizes, _Picks] = {}

        def at(numbers: tuple[int, int]) -> float:
            """Sequences of a prefill micro-batch, and decode micro-batches."""
            sizes = min(numbers[0], share), -(-share // min(numbers[1], share))
            if sizes not in found:
                found[sizes] = self._at_sizes(devices, share, sizes)
            return self._seconds(found[sizes], share, sizes)

        now = 1, max(1, sum(devices) // 3)
        best_s = at(now)
        for factor in SIZE_FACTORS:
            while True:
                prefill, decode = now
                trials = [(prefill, n) for n in _beside(decode, factor)] + [
                    (n, decode) for n in _beside(prefill, factor)
                ]
                better = next((trial for trial in trials if at(trial) < best_s), None)
                if better is None:
                    break
                now, best_s = better, at(better)
        by_seconds = sorted(found, key=lambda sizes: self._seconds(found[sizes], share, sizes))
        for sizes in by_seconds[:2]:
            if picks := self._exactly(found[sizes], devices, share, sizes):
                return self._pipeline(picks, share, sizes)
        return None

    def _at_sizes(self, devices: tuple[int, ...], share: int, sizes: Sizes) -> _Picks:
        """Shrink the caps in turn, as long as it helps."""
        tables = self._book.tables(devices, share, sizes)
        is_exact = self._num_layers <= FEW_LAYERS
        best = self._within_quality(tables, (math.inf, math.inf), is_exact=is_exact) if tables else []
        if not best:
            return []
        best_s = self._seconds(best, share, sizes)
        for step, phase in itertools.product(CAP_STEPS, (1, 0)):
            while True:
                caps = [cap * SAME for cap in _slowest(best)]
                caps[phase] *= step
                picks = self._within_quality(tables, (caps[0], caps[1]), is_exact=is_exact)
                seconds = self._seconds(picks, share, sizes)
                if seconds >= best_s:
                    break
                best, best_s = picks, seconds
        return best

    def _exactly(self, picks: _Picks, devices: tuple[int, ...], share: int, sizes: Sizes) -> _Picks:
        """The same caps with the quality that the layers really lose."""
        if not picks or self._num_layers <= FEW_LAYERS:
            return picks
        tables = self._book.tables(devices, share, sizes)
        prefill_s, decode_s = _slowest(picks)
        for slack in SLACK:
            if exact := self._within_quality(
                tables, (prefill_s * SAME * slack, decode_s * SAME * slack), is_exact=True
            ):
                return exact
        return []

    def _within_quality(self, tables: list[Table], caps: _Caps, *, is_exact: bool) -> _Picks:
        """The least seconds once round the ring with a loss of at most Ω, by bisection of its price."""

        def at(price: float) -> _Picks:
            picks = self._least(tables, caps, price, is_exact)
            loss = sum(pick.exact_loss if is_exact else pick.expected_loss for pick in picks)
            return picks if loss <= self._limit else []

        if math.isinf(self._limit):
            return at(0.0)
        low, high = self._price / BRACKET, self._price
        best = at(high)
        if best:
            while low > FIRST_PRICE and (milder := at(low)):
                best, low, high = milder, low / BRACKET, low
        elif not (best := at(MOST_PRICE)):
            return []
        else:
            while not (picks := at(high)):
                low, high = high, high * BRACKET
            best = picks
        if low <= FIRST_PRICE and (free := at(0.0)):
            return free
        for _ in range(PRICE_STEPS):
            middle = math.sqrt(low * high)
            if picks := at(middle):
                best, high = picks, middle
            else:
                low = middle
        self._price = high
        return best

    def _least(self, tables: list[Table], caps: _Caps, price: float, is_exact: bool) -> _Picks:
        """A pattern for every device, so that all layers stand somewhere, at the least cost."""
        ring: dict[int, Floats] = {}
        by_price: dict[tuple[int, float], Floats] = {}
        least = np.full(self._num_layers + 1, np.inf)  # by the number of layers that stand
        least[0] = 0.0
        numbers, costs = [], []
        for place, table in enumerate(tables):
            patterns = table.patterns
            if id(table) not in ring:
                allowed = table.fits & (table.prefill_s <= caps[0]) & (table.decode_s <= caps[1])
                ring[id(table)] = np.where(allowed, table.prefill_s + self._rounds * table.decode_s, np.inf)
            level = 1.0 if is_exact else 1 + SPREAD * (place % LEVELS / LEVELS - 0.5)
            if (id(table), level) not in by_price:
                loss = patterns.exact_loss if is_exact else patterns.expected_loss
                by_price[id(table), level] = ring[id(table)] + price * level * loss
            cost = by_price[id(table), level]
            of_number = np.minimum.reduceat(cost, patterns.starts, axis=-1)
            window = self._windows(len(patterns.starts))
            before = np.concatenate([np.full(len(patterns.starts) - 1, np.inf), least])[window]
            if is_exact:
                first = np.maximum(window - (len(patterns.starts) - 1), 0)
                sums = before + of_number[first, np.arange(len(patterns.starts))]
            else:
                sums = before + of_number
            number = sums.argmin(axis=1)
            least = sums[np.arange(len(number)), number]
            numbers.append(number)
            costs.append(cost)
        if not math.isfinite(least[-1]):
            return []
        stop, picks = self._num_layers, []
        for table, number, cost in zip(reversed(tables), reversed(numbers), reversed(costs), strict=True):
            layers = int(number[stop])
            stop -= layers
            starts = [*table.patterns.starts, len(table.patterns.counts)]
            of_rows = cost[stop] if is_exact else cost
            if layers:
                row = starts[layers] + int(np.argmin(of_rows[starts[layers] : starts[layers + 1]]))
                picks.append(_Pick(table, row, stop))
        return picks[::-1]

    def _all_windows(self, length: int) -> NDArray[np.int64]:
        """[layers that stand, layers of the next device]: where to read the layers before, behind `length - 1` more."""
        return np.arange(self._num_layers + 1)[:, None] + np.arange(length)[::-1]

    def _seconds(self, picks: _Picks, share: int, sizes: Sizes) -> float:
        if not picks:
            return math.inf
        prefill, decode = (
            PhaseCosts(
                [pick.seconds[position] for pick in picks],
                [self._send_s(phase, size)] * (len(picks) - 1),
                self._return_s(size) if len(picks) > 1 else 0.0,
                num_micro_batches(share, size),
            )
            for position, (phase, size) in enumerate(zip(Phase, sizes, strict=True))
        )
        return float(prefill_seconds(prefill) + decode_seconds(decode, self._rounds + 1))

    def _send_s(self, phase: Phase, size: int) -> float:
        request, element_bytes = self._rates.request, self._rates.kinds[0][0].element_bytes
        tokens = size * (request.workload.prompt_tokens if phase is Phase.PREFILL else 1)
        num_bytes = activation_message_bytes(phase, size, tokens, request.model.hidden_size, element_bytes)
        return request.cluster.default_link.seconds(num_bytes)

    def _return_s(self, size: int) -> float:
        return self._rates.request.cluster.default_link.seconds(token_message_bytes(size))

    def _pipeline(self, picks: _Picks, share: int, sizes: Sizes) -> Pipeline:
        """With a choice for each layer."""
        stages = []
        for pick in picks:
            counts = [int(count) for count in pick.table.patterns.counts[pick.row]]
            rows = self._rates.omega[pick.first : pick.first + sum(counts)]
            stages.append(Stage(pick.table.kind, tuple(least_omega_choices(rows, counts))))
        return Pipeline(share, sizes, tuple(stages), self._seconds(picks, share, sizes))


def _slowest(picks: Sequence[_Pick]) -> _Caps:
    return max(pick.seconds[0] for pick in picks), max(pick.seconds[1] for pick in picks)


def _beside(number: int, factor: float) -> tuple[int, int]:
    return max(number + 1, round(number * factor)), max(1, min(number - 1, round(number / factor)))

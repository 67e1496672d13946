"""A good pipeline of given devices for a share of the batch, in well under a second: the fleet planner's oracle.

For micro-batch sizes and limits on the slowest stage of each phase, every device picks a pattern (so many layers at
each choice), and a dynamic programme over the number of layers finds the patterns of least seconds and quality loss
together, at a price for the loss. The limits, the price and the sizes are searched over. No proof comes with it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.cost.timeline import PhaseCosts, decode_seconds, prefill_seconds
from hetero_infer.planner.fleet.quality import least_omega_choices
from hetero_infer.planner.fleet.rates import Floats, Rates
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.workload import Phase

STEPS = (0.75, 0.92, 0.975)  # by which a limit on the slowest stage shrinks
PRICE_STEPS = 2
FIRST_PRICE, MOST_PRICE, BRACKET = 1.0, 1e9, 2.0  # seconds for a unit of ω
ATTEMPTS = 4  # at a plan within Ω: what a pattern loses is only estimated before it has its layers
LEVELS = 8
SPREAD = 0.5  # of what a layer's quality is worth, between alike devices: or all would change their choice at once
Sizes = tuple[int, int]  # prefill, decode


@dataclass(frozen=True)
class Stage:
    """`choices` of its decoder layers in order, as positions in `PlanRequest.choices`."""

    kind: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Pipeline:
    """`seconds` is its closed form for `share` sequences; `spare` the part of Ω that is not used."""

    share: int
    sizes: Sizes
    stages: tuple[Stage, ...]
    seconds: float


@dataclass(frozen=True)
class _Patterns:
    """Of one device: `counts` [patterns, choices] by number of layers; `starts` where each number begins."""

    counts: Floats
    starts: Floats
    needs_bytes: Floats
    loss: Floats
    kind: int
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class _Table:
    """The patterns that fit for given sizes: seconds of one micro-batch in both phases."""

    patterns: _Patterns
    prefill_s: Floats
    decode_s: Floats
    fits: Floats


class PipelineSearch:
    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.num_layers = len(rates.omega)
        self._mildest_first = rates.omega[np.argsort(rates.omega.sum(axis=1), kind="stable")]
        self._price = FIRST_PRICE
        self._patterns = cache(self._all_patterns)
        self._window = cache(self._all_windows)
        self.best = cache(self._best)

    # -- sizes -----------------------------------------------------------------------------------------------------

    def _best(self, devices: tuple[int, ...], share: int) -> Pipeline | None:
        """With `devices[kind]` of each kind, some of which it may leave out; None where it finds nothing."""
        found: dict[Sizes, Pipeline | None] = {}

        def at(sizes: Sizes) -> float:
            if sizes not in found:
                found[sizes] = self._at_sizes(devices, share, sizes)
            pipeline = found[sizes]
            return pipeline.seconds if pipeline else math.inf

        def sizes_of(fill: int, micro_batches: int) -> Sizes:
            return min(fill, share), -(-share // min(micro_batches, share))

        start = [1, max(1, sum(devices) // 3)]
        best = at(sizes_of(*start))
        for factor in (2.0, 1.3):
            improved = True
            while improved:
                improved = False
                for position, up in itertools.product((1, 0), (True, False)):
                    trial = list(start)
                    now = trial[position]
                    trial[position] = max(now + 1, round(now * factor)) if up else max(1, min(now - 1, round(now / factor)))
                    if trial != start and (seconds := at(sizes_of(*trial))) < best * (1 - 1e-4):
                        start, best, improved = trial, seconds, True
        return min((p for p in found.values() if p), key=lambda p: p.seconds, default=None)

    # -- one pair of sizes -----------------------------------------------------------------------------------------

    def _at_sizes(self, devices: tuple[int, ...], share: int, sizes: Sizes) -> Pipeline | None:
        tables = self._tables(devices, share, sizes)
        if tables is None:
            return None
        omega_limit = limit = self.rates.request.omega_limit
        for _ in range(ATTEMPTS):
            picked = self._search_limits(tables, share, sizes, limit)
            if picked is None:
                return None
            pipeline, omega = self._realise(picked, share, sizes)
            if omega <= omega_limit:
                return pipeline
            limit -= 1.1 * (omega - omega_limit)
        return None

    def _search_limits(self, tables: list[_Table], share: int, sizes: Sizes, limit: float) -> list[tuple[_Table, int]] | None:
        """Shrink the limits on the slowest stages in turn, as long as it helps."""
        def at(caps: tuple[float, float]) -> tuple[float, list[tuple[_Table, int]] | None]:
            picked = self._within_quality(tables, caps, limit)
            return (self._seconds(picked, share, sizes), picked) if picked else (math.inf, None)

        best_s, best = at((math.inf, math.inf))
        if best is None:
            return None
        for step in STEPS:
            for phase in (1, 0):
                while True:
                    slowest = (max(t.prefill_s[row] for t, row in best), max(t.decode_s[row] for t, row in best))
                    caps = (slowest[0] * step, slowest[1] * (1 + 1e-12)) if phase == 0 else (slowest[0] * (1 + 1e-12), slowest[1] * step)
                    seconds, picked = at(caps)
                    if picked is None or seconds >= best_s:
                        break
                    best_s, best = seconds, picked
        return best

    def _within_quality(self, tables: list[_Table], caps: tuple[float, float], limit: float) -> list[tuple[_Table, int]] | None:
        """The least seconds once round the ring with a loss of at most `limit`, by bisection of its price."""

        def at(value: float) -> tuple[float, list[tuple[_Table, int]] | None]:
            picked = self._least(tables, caps, value)
            return (sum(t.patterns.loss[row] for t, row in picked), picked) if picked else (math.inf, None)

        low, high, best = 0.0, self._price, None
        loss, picked = at(high)
        if picked is None:
            return None
        if loss <= limit:
            best = picked
            low = high / BRACKET
            if (milder := at(low)) and milder[0] <= limit:
                low, high, best = 0.0, low, milder[1]
        elif at(MOST_PRICE)[0] > limit:
            return None
        while best is None:
            low, high = high, high * BRACKET
            loss, picked = at(high)
            if loss <= limit:
                best = picked
        if low == 0.0 and (free := at(0.0))[0] <= limit:
            return free[1]
        for _ in range(PRICE_STEPS):
            middle = math.sqrt(low * high) if low else high / BRACKET
            loss, picked = at(middle)
            if loss <= limit:
                high, best = middle, picked
            else:
                low = middle
        self._price = high
        return best

    def _least(self, tables: list[_Table], caps: tuple[float, float], price: float) -> list[tuple[_Table, int]] | None:
        """A pattern for every device, so that all layers stand somewhere, at the least cost."""
        rounds = self.rates.request.workload.new_tokens - 1
        ring: dict[int, Floats] = {}
        costs = []
        total = np.full(self.num_layers + 1, np.inf)
        total[0] = 0.0
        picks = []
        for place, table in enumerate(tables):
            if id(table) not in ring:
                allowed = table.fits & (table.prefill_s <= caps[0]) & (table.decode_s <= caps[1])
                ring[id(table)] = np.where(allowed, table.prefill_s + rounds * table.decode_s, np.inf)
            level = 1 + SPREAD * (place * LEVELS % (LEVELS + 1) / LEVELS - 0.5) if price else 1
            cost = ring[id(table)] + price * level * table.patterns.loss
            by_count = np.minimum.reduceat(cost, table.patterns.starts)
            padded = np.concatenate([np.full(len(by_count) - 1, np.inf), total])
            sums = padded[self._window(len(by_count))] + by_count
            pick = sums.argmin(axis=1)
            total = sums[np.arange(len(pick)), pick]
            picks.append(pick)
            costs.append(cost)
        if not math.isfinite(total[-1]):
            return None
        left, chosen = self.num_layers, []
        for table, pick, cost in zip(reversed(tables), reversed(picks), reversed(costs), strict=True):
            count = int(pick[left])
            left -= count
            starts = table.patterns.starts
            stop = starts[count + 1] if count + 1 < len(starts) else len(cost)
            if count or table.patterns.is_first or table.patterns.is_last:
                chosen.append((table, int(starts[count] + np.argmin(cost[starts[count] : stop]))))
        return chosen[::-1]

    # -- patterns --------------------------------------------------------------------------------------------------

    def _tables(self, devices: tuple[int, ...], share: int, sizes: Sizes) -> list[_Table] | None:
        """One for each device, in the order of stages: the first kind of all has the embedding, the last the head."""
        left = list(devices)
        roomy = sorted((k for k, n in enumerate(devices) if n), key=lambda k: -self.rates.kinds[k][0].memory_bytes)
        if sum(devices) == 1:
            ends = [(roomy[0], True, True)]
        else:
            first = roomy[0]
            left[first] -= 1
            last = next(k for k in roomy if left[k])
            left[first] += 1
            ends = [(first, True, False), (last, False, True)]
        for kind, _, _ in ends:
            left[kind] -= 1
        stands = [ends[0], *((k, False, False) for k, n in enumerate(left) for _ in range(n)), *ends[1:]]
        made = {stand: self._table(self._patterns(*stand, share), sizes) for stand in set(stands)}
        return [made[stand] for stand in stands] if all(made.values()) else None

    def _table(self, patterns: _Patterns, sizes: Sizes) -> _Table | None:
        rates, kind = self.rates, patterns.kind
        room = rates.room_bytes(kind, *sizes, is_first=patterns.is_first, is_last=patterns.is_last)
        fits = patterns.needs_bytes <= room
        if not fits.any() or room < 0:
            return None
        seconds = []
        for phase, size in zip(Phase, sizes, strict=True):
            layer_s = np.where(np.isfinite(rates.layer_s[phase][kind, :, size]), rates.layer_s[phase][kind, :, size], 0.0)
            ends_s = patterns.is_first * rates.embedding_s[phase][kind, size] + patterns.is_last * rates.head_s[phase][kind, size]
            seconds.append(patterns.counts @ layer_s + ends_s)
        return _Table(patterns, *seconds, fits)

    def _all_patterns(self, kind: int, is_first: bool, is_last: bool, share: int) -> _Patterns:
        """Those of two neighbouring choices that fit with the smallest micro-batches."""
        rates = self.rates
        needs = rates.weight_bytes[kind] + share * rates.sequence_bytes[kind]
        room = rates.room_bytes(kind, 1, 1, is_first=is_first, is_last=is_last)
        allowed = np.flatnonzero(np.isfinite(rates.layer_s[Phase.DECODE][kind, :, 1]))
        most = {c: int(min(self.num_layers, max(0, room // needs[c]))) for c in allowed}
        rows = {(0,) * len(needs)}
        by_weight = sorted(allowed, key=lambda c: needs[c])
        for one, other in itertools.pairwise([*by_weight, by_weight[-1]]):
            for n in range(most[one] + 1):
                rest = 0 if one == other else int(min(self.num_layers - n, (room - n * needs[one]) // needs[other]))
                for m in range(rest + 1):
                    row = [0] * len(needs)
                    row[one] += n
                    row[other] += m
                    rows.add(tuple(row))
        counts = np.array(sorted(rows, key=lambda row: (sum(row), row)))
        quantised = np.array([choice.is_quantised for choice in rates.request.choices])
        buffer = rates.dequantise_bytes(kind) * (counts[:, quantised].sum(axis=1) > 0)
        sums = counts.sum(axis=1)
        keep = (sums > 0) if is_first or is_last else np.full(len(sums), True)
        needed = np.where(keep, counts @ needs + buffer, np.inf)
        starts = np.searchsorted(sums, np.arange(sums[-1] + 1))
        return _Patterns(counts, starts, needed, self._expected_loss(counts, sums), kind, is_first, is_last)

    def _expected_loss(self, counts: Floats, sums: Floats) -> Floats:
        """Of each pattern on layers that are as mixed as those of the model: the mildest take the fewest bits."""
        order = np.argsort(-self.rates.omega.sum(axis=0))
        loss = np.zeros(len(counts))
        for total in range(1, int(sums.max()) + 1):
            layers = self._mildest_first[((np.arange(total) + 0.5) * self.num_layers / total).astype(int)]
            running = np.vstack([np.zeros(layers.shape[1]), layers.cumsum(axis=0)])
            rows = sums == total
            stops = counts[rows][:, order].cumsum(axis=1)
            begins = np.hstack([np.zeros((len(stops), 1), dtype=int), stops[:, :-1]])
            loss[rows] = (running[stops, order] - running[begins, order]).sum(axis=1)
        return loss

    def _all_windows(self, length: int) -> Floats:
        return np.arange(self.num_layers + 1)[:, None] + np.arange(length)[::-1]

    # -- what was picked -------------------------------------------------------------------------------------------

    def _seconds(self, picked: Sequence[tuple[_Table, int]], share: int, sizes: Sizes) -> float:
        """The closed form, with the default link between any two devices."""
        costs = [
            PhaseCosts(
                [(table.prefill_s, table.decode_s)[phase is Phase.DECODE][row] for table, row in picked],
                [self._send_s(phase, size)] * (len(picked) - 1),
                self._return_s(size) if len(picked) > 1 else 0.0,
                num_micro_batches(share, size),
            )
            for phase, size in zip(Phase, sizes, strict=True)
        ]
        return float(prefill_seconds(costs[0]) + decode_seconds(costs[1], self.rates.request.workload.new_tokens))

    def _send_s(self, phase: Phase, size: int) -> float:
        request, element_bytes = self.rates.request, self.rates.kinds[0][0].element_bytes
        tokens = size * (request.workload.prompt_tokens if phase is Phase.PREFILL else 1)
        num_bytes = activation_message_bytes(phase, size, tokens, request.model.hidden_size, element_bytes)
        return request.cluster.default_link.seconds(num_bytes)

    def _return_s(self, size: int) -> float:
        return self.rates.request.cluster.default_link.seconds(token_message_bytes(size))

    def _realise(self, picked: Sequence[tuple[_Table, int]], share: int, sizes: Sizes) -> tuple[Pipeline, float]:
        """With a choice for each layer, and its Σω."""
        stages, omega, first = [], 0.0, 0
        for table, row in picked:
            counts = [int(count) for count in table.patterns.counts[row]]
            rows = self.rates.omega[first : first + sum(counts)]
            choices = least_omega_choices(rows, counts)
            omega += float(rows[np.arange(len(choices)), choices].sum())
            stages.append(Stage(table.patterns.kind, tuple(choices)))
            first += len(choices)
        return Pipeline(share, sizes, tuple(stages), self._seconds(picked, share, sizes)), omega

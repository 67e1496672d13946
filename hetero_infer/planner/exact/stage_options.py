"""What can stand on a device of each class: how many decoder layers at each choice, in seconds, bytes and Σω.

`CountTables` holds what is independent of the micro-batch sizes; `StageOptions` is one class at one pair of sizes;
`Selection` those of its options that keep within caps on seconds, and what they cost under prices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from hetero_infer.planner.exact.arrays import Bools, Floats, Integers
from hetero_infer.planner.exact.least_omega import LeastOmega
from hetero_infer.planner.exact.ring_paths import Hop, StageCosts
from hetero_infer.planner.problem import Ends, StageTerms
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.workload import Phase

Position = Literal["first", "middle", "last", "only"]


@dataclass(frozen=True)
class Prices:
    """What a second of a stage in each phase counts, and a unit of Σω."""

    seconds: Mapping[Phase, float]
    omega: float


@dataclass(frozen=True)
class Caps:
    """The most seconds a station may take in each phase."""

    seconds: Mapping[Phase, float]


class CountTables:
    """The counts that can stand on one class at all, by length, and the least Σω of each at every start.

    Flat arrays run through all lengths, shortest first; `slices[length]` is where a length stands in them.
    """

    def __init__(
        self, least_omega: LeastOmega, choices: Sequence[Choice], terms: Sequence[StageTerms], num_layers: int
    ) -> None:
        """`terms`: of the class, wherever it may stand, with the smallest workspace that it can have."""
        self.num_layers = num_layers
        self.choices = tuple(choices)
        kept = {
            length: np.logical_or.reduce([fitting(rows, choices, one) for one in terms])
            for length, rows in least_omega.counts.items()
        }
        self.lengths = [length for length, mask in kept.items() if mask.any()]
        self.omega = {
            length: np.ascontiguousarray(least_omega.omega[length][:, kept[length]]) for length in self.lengths
        }
        rows = [least_omega.counts[length][kept[length]] for length in self.lengths]
        self.counts: Integers = np.concatenate(rows) if rows else np.zeros((0, len(choices)), dtype=np.int64)
        bounds = np.cumsum([0, *map(len, rows)])
        self.slices = {length: slice(*bounds[k : k + 2]) for k, length in enumerate(self.lengths)}
        self.starts_of_lengths: Integers = bounds[:-1]
        self.quantises: Bools = self.counts @ np.array([choice.is_quantised for choice in choices], dtype=np.int64) > 0
        self.layer_bytes: Integers = self.counts @ _per_choice(terms[0].layer_bytes, choices, 0).astype(np.int64)

    @cached_property
    def omega_at_start(self) -> Floats:
        """Flat, of intervals that begin with the first layer."""
        return self._flat_omega(first=True)

    @cached_property
    def omega_at_end(self) -> Floats:
        """Flat, of intervals that end with the last layer."""
        return self._flat_omega(first=False)

    def _flat_omega(self, *, first: bool) -> Floats:
        tables = [self.omega[length] for length in self.lengths]
        rows = [table[0 if first else -1] for table in tables]
        return np.concatenate(rows) if rows else np.zeros(0)

    def seconds(self, layer_s: Mapping[Choice, float]) -> Floats:
        """Flat, of the layers alone."""
        return np.asarray(self.counts @ _per_choice(layer_s, self.choices, 0.0))

    def fits(self, terms: StageTerms, ends: Ends) -> Bools:
        """Flat: whether the layers fit beside these ends."""
        buffer = np.where(self.quantises | ends.dequantises, terms.dequantise_bytes, 0)
        return np.asarray(self.layer_bytes + buffer <= terms.room_bytes - ends.num_bytes)


def fitting(rows: Integers, choices: Sequence[Choice], terms: StageTerms) -> Bools:
    """Which counts fit on a stage with the smallest of its ends."""
    allowed = np.array([choice in terms.layer_bytes for choice in choices])
    quantised = np.array([choice.is_quantised for choice in choices])
    num_bytes = rows @ _per_choice(terms.layer_bytes, choices, 0).astype(np.int64)
    fits = np.zeros(len(rows), dtype=bool)
    for ends in terms.ends:
        buffer = np.where((rows[:, quantised].sum(axis=1) > 0) | ends.dequantises, terms.dequantise_bytes, 0)
        fits |= num_bytes + buffer <= terms.room_bytes - ends.num_bytes
    return np.asarray(fits & (rows[:, ~allowed].sum(axis=1) == 0))


@dataclass(frozen=True)
class StageOptions:
    """One class at one pair of micro-batch sizes: `terms` by where the stage stands; `layers_s` are flat."""

    tables: CountTables
    layers_s: Mapping[Phase, Floats]
    terms: Mapping[Position, StageTerms]

    @cached_property
    def fits(self) -> Mapping[Position, list[tuple[Ends, Bools]]]:
        """Each way to store the ends, and which counts fit beside it."""
        return {
            position: [(ends, self.tables.fits(terms, ends)) for ends in terms.ends]
            for position, terms in self.terms.items()
        }

    def within(self, caps: Caps, position: Position) -> list[tuple[Ends, Bools]]:
        """The same, of what also keeps within `caps`."""
        found = []
        for ends, fits in self.fits[position]:
            kept = fits
            for phase in Phase:
                kept = kept & (self.layers_s[phase] <= caps.seconds[phase] - ends.seconds[phase])
            found.append((ends, kept))
        return found


@dataclass(frozen=True)
class IntervalOptions:
    """All that can stand on one interval of layers: seconds and Σω with the ends, `ends[which_ends[row]]`."""

    counts: Integers
    ends: tuple[Ends, ...]
    which_ends: Integers
    seconds: Mapping[Phase, Floats]
    omega: Floats

    def costs(self, prices: Prices) -> Floats:
        return _total(prices, self.seconds) + prices.omega * self.omega


class Selection:
    """The options of one class within `caps`."""

    def __init__(self, options: StageOptions, caps: Caps) -> None:
        self._options = options
        tables = options.tables
        self._inside: dict[Position, list[tuple[Ends, Bools]]] = {
            position: options.within(caps, position) for position in options.terms
        }
        inside = self._inside["middle"][0][1]
        rows = {length: np.flatnonzero(inside[where]) for length, where in tables.slices.items()}
        self._rows = {length: found for length, found in rows.items() if len(found)}
        self._omega = {length: tables.omega[length][:, found] for length, found in self._rows.items()}

    def costs(self, prices: Prices) -> StageCosts:
        """The cheapest option of every interval."""
        tables = self._options.tables
        num_layers = tables.num_layers
        layers = _total(prices, self._options.layers_s)
        middle = np.full((max(self._rows, default=0), num_layers + 1), np.inf)
        for length, rows in self._rows.items():
            costs = layers[tables.slices[length]][rows]
            starts = slice(0, num_layers - length + 1)
            if prices.omega:
                middle[length - 1, starts] = (prices.omega * self._omega[length] + costs).min(axis=1)
            else:
                middle[length - 1, starts] = costs.min()
        at_start = self._by_length(layers + prices.omega * tables.omega_at_start, "first", prices)
        at_end = self._by_length(layers + prices.omega * tables.omega_at_end, "last", prices)
        only = self._by_length(layers + prices.omega * tables.omega_at_start, "only", prices)[num_layers]
        at_start[num_layers] = at_end[num_layers] = np.inf  # other stages stand behind or before
        return StageCosts(middle, at_start, at_end[::-1].copy(), float(only))

    def _by_length(self, layers: Floats, position: Position, prices: Prices) -> Floats:
        """[length]: the cheapest at an end of the pipeline."""
        tables = self._options.tables
        best = np.full(tables.num_layers + 1, np.inf)
        for ends, inside in self._inside[position]:
            if tables.lengths:
                costs = np.where(inside, layers + _end_cost(ends, prices), np.inf)
                shortest = np.minimum.reduceat(costs, tables.starts_of_lengths)
                best[tables.lengths] = np.minimum(best[tables.lengths], shortest)
        return best

    def of(self, hop: Hop) -> IntervalOptions:
        """What can stand on an interval."""
        options = self._options
        tables = options.tables
        length = hop.stop - hop.start
        where = tables.slices[length]
        is_first, is_last = hop.start == 0, hop.stop == tables.num_layers
        position: Position = (
            "only" if is_first and is_last else "first" if is_first else "last" if is_last else "middle"
        )
        found = [(ends, np.flatnonzero(inside[where])) for ends, inside in self._inside[position]]
        omega = tables.omega[length][hop.start]
        return IntervalOptions(
            counts=np.concatenate([tables.counts[where][rows] for _, rows in found]),
            ends=tuple(ends for ends, _ in found),
            which_ends=np.repeat(np.arange(len(found)), [len(rows) for _, rows in found]),
            seconds={
                phase: np.concatenate(
                    [options.layers_s[phase][where][rows] + ends.seconds[phase] for ends, rows in found]
                )
                for phase in Phase
            },
            omega=np.concatenate([omega[rows] + ends.omega for ends, rows in found]),
        )


def _total(prices: Prices, seconds: Mapping[Phase, Floats]) -> Floats:
    return prices.seconds[Phase.PREFILL] * seconds[Phase.PREFILL] + prices.seconds[Phase.DECODE] * seconds[Phase.DECODE]


def _end_cost(ends: Ends, prices: Prices) -> float:
    return sum(prices.seconds[phase] * ends.seconds[phase] for phase in Phase) + prices.omega * ends.omega


def _per_choice(values: Mapping[Choice, float], choices: Sequence[Choice], missing: float) -> Floats:
    return np.array([values.get(choice, missing) for choice in choices], dtype=float)

"""Patterns: the ways a device can hold decoder layers, so many at each choice, and what each costs.

In: a kind of device, its place in the pipeline, its share of the batch. Out: a `Table` of the patterns that fit, with
their seconds; what they lose in quality is known for layers as mixed as the model's, and exactly from a first layer on.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from hetero_infer.planner.fleet.quality import Floats
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.spec.workload import Phase

Sizes = tuple[int, int]  # of a prefill and a decode micro-batch


@dataclass(frozen=True)
class Patterns:
    """`counts` is [patterns, choices], sorted by the number of layers; those with n layers begin at `starts[n]`."""

    counts: NDArray[np.int64]
    omega: Floats

    @cached_property
    def num_layers(self) -> NDArray[np.int64]:
        return np.asarray(self.counts.sum(axis=1))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.searchsorted(self.num_layers, np.arange(self.num_layers[-1] + 1))

    @cached_property
    def expected_loss(self) -> Floats:
        """Of each pattern, on layers that are as mixed as those of the model."""
        mildest_first = self.omega[np.argsort(self.omega.sum(axis=1), kind="stable")]
        loss = np.zeros(len(self.counts))
        for n in range(1, len(self.starts)):
            quantiles = ((np.arange(n) + 0.5) * len(self.omega) / n).astype(int)
            loss[self.num_layers == n] = self._loss(mildest_first[quantiles], n)
        return loss

    @cached_property
    def exact_loss(self) -> Floats:
        """[first layer, pattern], the fewest bits on the mildest layers; 0 where the model has not so many layers."""
        total = len(self.omega)
        loss = np.zeros((total + 1, len(self.counts)))
        for n in range(1, len(self.starts)):
            rows = self.num_layers == n
            for first in range(total - n + 1):
                layers = self.omega[first : first + n]
                loss[first, rows] = self._loss(layers[np.argsort(layers.sum(axis=1), kind="stable")], n)
        return loss

    def _loss(self, mildest_first: Floats, num_layers: int) -> Floats:
        """Of the patterns with so many layers."""
        order = np.argsort(-self.omega.sum(axis=0))
        running = np.vstack([np.zeros(len(order)), mildest_first.cumsum(axis=0)])
        stops = self.counts[self.num_layers == num_layers][:, order].cumsum(axis=1)
        begins = np.hstack([np.zeros((len(stops), 1), dtype=np.int64), stops[:, :-1]])
        return np.asarray((running[stops, order] - running[begins, order]).sum(axis=1))


@dataclass(frozen=True)
class Table:
    """Seconds of one micro-batch in both phases, by pattern. An end of the pipeline has at least one layer."""

    kind: int
    is_end: bool
    patterns: Patterns
    prefill_s: Floats
    decode_s: Floats
    fits: NDArray[np.bool_]


class PatternBook:
    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._of_kind = cache(self._all_patterns)

    def tables(self, devices: tuple[int, ...], share: int, sizes: Sizes) -> list[Table]:
        """One for each device in the order of stages; the roomiest have the ends. Empty where an end does not fit."""
        kinds = [kind for kind, count in enumerate(devices) for _ in range(count)]
        ends = sorted(kinds, key=lambda kind: -self._rates.kinds[kind][0].memory_bytes)[:2]
        for kind in ends:
            kinds.remove(kind)
        stands = [(ends[0], True, len(ends) == 1), *((kind, False, False) for kind in kinds)]
        stands += [(kind, False, True) for kind in ends[1:]]
        made = {stand: self._table(*stand, share, sizes) for stand in set(stands)}
        tables = [made[stand] for stand in stands]
        return tables if all(table.fits.any() for table in tables if table.is_end) else []

    def _table(self, kind: int, is_first: bool, is_last: bool, share: int, sizes: Sizes) -> Table:
        rates, patterns = self._rates, self._of_kind(kind)
        needs = rates.weight_bytes[kind] + share * rates.sequence_bytes[kind]
        quantised = [choice.is_quantised for choice in rates.request.choices]
        without_buffer, with_buffer = (
            rates.room_bytes(kind, *sizes, is_first=is_first, is_last=is_last, dequantises=dequantises)
            for dequantises in (False, True)
        )
        room = np.where(patterns.counts[:, quantised].sum(axis=1) > 0, with_buffer, without_buffer)
        is_end = is_first or is_last
        fits = patterns.counts @ needs <= room

        def seconds(phase: Phase, size: int) -> Floats:
            layer_s = rates.layer_s[phase][kind, :, size]
            ends_s = is_first * rates.embedding_s[phase][kind, size] + is_last * rates.head_s[phase][kind, size]
            whole_s = patterns.counts @ np.where(np.isfinite(layer_s), layer_s, 0.0) + ends_s
            return np.where(patterns.num_layers > 0, whole_s, 0.0)

        prefill_s, decode_s = seconds(Phase.PREFILL, sizes[0]), seconds(Phase.DECODE, sizes[1])
        return Table(kind, is_end, patterns, prefill_s, decode_s, fits & (patterns.num_layers >= is_end))

    def _all_patterns(self, kind: int) -> Patterns:
        """Those of two choices that are neighbours in size, and that fit with a single sequence."""
        rates = self._rates
        needs = rates.weight_bytes[kind] + rates.sequence_bytes[kind]
        room = max(0, rates.room_bytes(kind, 1, 1))
        allowed = np.flatnonzero(np.isfinite(rates.layer_s[Phase.DECODE][kind, :, 1]))
        rows = set(self._rows(sorted(allowed, key=lambda choice: float(needs[choice])), needs, room))
        return Patterns(np.array(sorted(rows, key=lambda row: (sum(row), row))), rates.omega)

    def _rows(self, by_size: list[int], needs: Floats, room: float) -> Iterator[tuple[int, ...]]:
        num_layers = len(self._rates.omega)
        for one, other in itertools.pairwise([*by_size, by_size[-1]]):
            for n in range(int(min(num_layers, room // needs[one])) + 1):
                rest = 0 if one == other else int(min(num_layers - n, (room - n * needs[one]) // needs[other]))
                for m in range(rest + 1):
                    row = [0] * len(needs)
                    row[one], row[other] = n, m if one != other else n
                    yield tuple(row)

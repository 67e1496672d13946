"""The fewest devices per sequence, at a price for each kind, of any replica that ends in time: a linear programme.

A `Cell` is a box of replicas: so many sequences and decode micro-batches, and so many seconds of their slowest stages.
No replica in it costs less per sequence than `cheapest` says. What is dropped: order, contiguity, whole devices. What
is kept: memory with its buffers and ends, the quality limit, the closed form, and that a device has whole layers.
docs/planner.md has the proof.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hetero_infer.planner.fleet.linear_program import minimise
from hetero_infer.planner.fleet.quality import Floats, QualityCut, mildest_first_omega, quality_cut
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.problem import QUALITY_TOLERANCE
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.workload import Phase

SAFETY = 1e-6  # of a price; covers the simplex's own rounding
ROUND_UP = 1 + 1e-9  # before a quotient is rounded down
WORTH_A_CUT = 5e-3  # of Ω
MOST_CUTS = 3  # for one cell


@dataclass(frozen=True)
class Cell:
    """Ranges, ends included. `busy_s`: all prefill micro-batches less one pass on the slowest stage; `round_s`: one
    round of all decode micro-batches on it."""

    sequences: tuple[int, int]
    decode_micro_batches: tuple[int, int]
    busy_s: tuple[float, float]
    round_s: tuple[float, float]


@dataclass(frozen=True)
class Cheapest:
    """Both per sequence: a lower bound on the price, and the devices of each kind that it pays for."""

    price: float
    devices: Floats


NONE = Cheapest(math.inf, np.zeros(0))


@dataclass(frozen=True)
class _Stand:
    """A device of `kind` at a place in a pipeline. Where `dequantises` is false though it may hold quantised layers,
    their buffer is left out of its memory: a relaxation."""

    kind: int
    choices: tuple[int, ...]
    dequantises: bool = False
    is_first: bool = False
    is_last: bool = False


@dataclass(frozen=True)
class _Needs:
    """Of one layer, for its share of all sequences: the least for each of them, and the least for all."""

    per_sequence: Floats
    at_least: Floats

    def __add__(self, other: "_Needs") -> "_Needs":
        return _Needs(self.per_sequence + other.per_sequence, self.at_least + other.at_least)

    def times(self, factor: float) -> "_Needs":
        return _Needs(self.per_sequence * factor, self.at_least * factor)


@dataclass(frozen=True)
class _Costs:
    """The least that any sizes in a cell allow. Layers' are by column (stand and choice), ends' by stand.

    `busy` are the seconds of a stage's prefill beyond one pass, `turn` those of one round of decode. `fill` is a pass
    of each phase, `ring` what the full rounds take once round the ring.
    """

    busy: _Needs
    turn: _Needs
    fill: Floats
    ring: Floats
    num_bytes: _Needs
    end_busy: Floats
    end_turn: Floats
    end_fill: Floats
    end_ring: Floats
    room: Floats


class Relaxation:
    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self._num_layers = len(rates.omega)
        self._full_rounds = max(0, rates.request.workload.new_tokens - 2)
        self._last_rounds = min(1, rates.request.workload.new_tokens - 1)
        stands = [stand for kind in range(len(rates.kinds)) for stand in _stands(rates, kind)]
        self._stands = stands
        self._kind = np.array([stand.kind for stand in stands])
        self._is_first = np.array([stand.is_first for stand in stands])
        self._is_last = np.array([stand.is_last for stand in stands])
        self._stand = np.array([g for g, stand in enumerate(stands) for _ in stand.choices])
        self._choice = np.array([choice for stand in stands for choice in stand.choices])
        self._sends_s = {phase: rates.fastest_send_s(phase) for phase in Phase}
        self._cuts: list[QualityCut] = []
        self._room_bytes = cache(self._all_room_bytes)

    def cheapest(self, cell: Cell, prices: Floats, limit_s: float) -> Cheapest:
        """Of the replicas of `cell` that take at most `limit_s`; an infinite price where there are none."""
        for _ in range(1 + MOST_CUTS):
            found, counts = self._solve(cell, prices, limit_s)
            if not self._cut_off(counts):
                break
        return found

    def _solve(self, cell: Cell, prices: Floats, limit_s: float) -> tuple[Cheapest, Floats]:
        """And the layers at each choice."""
        nothing = NONE, np.zeros(0)
        fewest, most = cell.sequences
        sizes = _decode_sizes(cell)
        if not len(sizes):
            return nothing
        costs = self._costs(cell, sizes)
        drain = self._last_rounds * (1 - 1 / cell.decode_micro_batches[0])
        weight = self._full_rounds + drain
        slack_s = limit_s - self._num_layers * costs.fill.min()
        (least_busy_s, most_busy_s), (least_round_s, most_round_s) = cell.busy_s, cell.round_s
        most_busy_s = min(most_busy_s, slack_s - weight * least_round_s)
        if weight:
            most_round_s = min(most_round_s, (slack_s - least_busy_s) / weight)
        if most_busy_s < least_busy_s or most_round_s < least_round_s:
            return nothing

        layers, devices = len(self._stand), len(self._stands)
        on = (np.arange(devices)[:, None] == self._stand).astype(float)
        rows, limits = [], []
        whole = np.full(devices, float(self._num_layers))
        capacities = [
            (costs.num_bytes, np.zeros(devices), costs.room),
            (costs.busy, costs.end_busy, np.full(devices, most_busy_s)),
            (costs.turn, costs.end_turn, np.full(devices, most_round_s)),
            (
                costs.busy + costs.turn.times(weight),
                costs.end_busy + weight * costs.end_turn,
                np.full(devices, slack_s),
            ),
        ]
        for needed, end, cap in capacities:
            scale = max(float(np.abs(cap).max()), 1e-30)
            rows.append(np.hstack([on * needed.per_sequence, np.diag(end - cap)]) / scale)
            limits.append(np.zeros(devices))
            lightest = np.where(on > 0, needed.at_least, np.inf).min(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                most_layers = np.floor((cap - end) / lightest * ROUND_UP)
            whole = np.minimum(whole, np.where(lightest > 0, most_layers, np.inf))
        rows.append(np.hstack([on, np.diag(-most * np.clip(whole, 0, None))]))
        limits.append(np.zeros(devices))

        fill = np.hstack([costs.fill, fewest * costs.end_fill])
        ring = fill + np.hstack([costs.ring, fewest * costs.end_ring])
        once = [
            (fill / limit_s, 1 - (least_busy_s + weight * least_round_s) / limit_s),
            (ring / limit_s, 1 - (least_busy_s + drain * least_round_s) / limit_s),
        ]
        for cut in self._cuts:
            scale = max(float(np.abs(cut.prices).max()), 1e-30)
            once.append((np.hstack([cut.prices[self._choice], np.zeros(devices)]) / scale, cut.limit / scale))
        for kind, count in enumerate(self.rates.counts):
            once.append((np.hstack([np.zeros(layers), fewest * (self._kind == kind)]), count))
        for is_end in (self._is_first, self._is_last):
            once.append((np.hstack([np.zeros(layers), fewest * is_end]), 1.0))
            once.append((np.hstack([np.zeros(layers), -most * is_end]), -1.0))
        rows.append(np.array([row for row, _ in once]))
        limits.append(np.array([limit for _, limit in once]))
        rows.append(np.hstack([np.ones(layers), np.zeros(devices)])[None])
        limits.append(np.array([float(self._num_layers)]))
        matrix, at_most = np.vstack(rows), np.hstack(limits)
        matrix[:, layers:] /= most  # devices are per sequence: both kinds of columns get one size
        at_least = np.full(len(at_most), -np.inf)
        at_least[-1] = self._num_layers
        optimum = minimise(np.hstack([np.zeros(layers), prices[self._kind] / most]), matrix, at_least, at_most)
        if optimum is None:
            return Cheapest(0.0, np.zeros(len(prices))), np.zeros(0)
        if math.isinf(optimum.value):
            return nothing
        used = np.bincount(self._kind, optimum.x[layers:], len(prices)) / most
        counts = np.bincount(self._choice, optimum.x[:layers], self.rates.omega.shape[1]).astype(float)
        return Cheapest(optimum.value * (1 - SAFETY), used), counts

    def _costs(self, cell: Cell, decode_sizes: NDArray[np.int64]) -> _Costs:
        fewest, most = cell.sequences
        prefill_sizes = np.arange(1, most + 1)
        runs = {
            Phase.PREFILL: (prefill_sizes, np.maximum(1 / prefill_sizes, 1 / most)),
            Phase.DECODE: (decode_sizes, np.maximum(1 / decode_sizes, cell.decode_micro_batches[0] / most)),
        }
        column = self._kind[self._stand], self._choice
        once, each, end_once, end_each = {}, {}, {}, {}
        for phase, (sizes, per_sequence) in runs.items():
            layer_s = self.rates.layer_s[phase][:, :, sizes]
            ends_s = (
                self._is_first[:, None] * self.rates.embedding_s[phase][self._kind][:, sizes]
                + self._is_last[:, None] * self.rates.head_s[phase][self._kind][:, sizes]
            )
            once[phase], each[phase] = layer_s.min(axis=2)[column], (layer_s * per_sequence).min(axis=2)[column]
            end_once[phase], end_each[phase] = ends_s.min(axis=1), (ends_s * per_sequence).min(axis=1)
        sends = {phase: ~self._is_last * self._sends_s[phase] for phase in Phase}
        prefill, decode, full, last = Phase.PREFILL, Phase.DECODE, self._full_rounds, self._last_rounds
        weights, kv_cache = self.rates.weight_bytes[column], self.rates.sequence_bytes[column[0]]
        fewest_rounds = np.maximum(cell.decode_micro_batches[0], -(-fewest // decode_sizes))
        turn_s = (self.rates.layer_s[decode][:, :, decode_sizes] * fewest_rounds).min(axis=2)[column]
        busy_s = np.maximum(0, each[prefill] - once[prefill] / fewest)
        return _Costs(
            busy=_Needs(busy_s, fewest * busy_s),
            turn=_Needs(last * each[decode], last * turn_s),
            fill=once[prefill] + last * once[decode],
            ring=full * once[decode],
            num_bytes=_Needs(weights / most + kv_cache, weights + fewest * kv_cache),
            end_busy=np.maximum(0, end_each[prefill] * fewest - end_once[prefill]),
            end_turn=last * end_each[decode] * fewest,
            end_fill=end_once[prefill] + sends[prefill] + last * (end_once[decode] + sends[decode]),
            end_ring=full * (end_once[decode] + sends[decode]),
            room=self._room_bytes(int(decode_sizes[0])),
        )

    def _all_room_bytes(self, decode_size: int) -> Floats:
        """Of each stand, with micro-batches of at least `decode_size`."""
        return np.array(
            [
                self.rates.room_bytes(
                    stand.kind,
                    1,
                    decode_size,
                    is_first=stand.is_first,
                    is_last=stand.is_last,
                    dequantises=stand.dequantises,
                )
                for stand in self._stands
            ],
            dtype=float,
        )

    def _cut_off(self, counts: Floats) -> bool:
        """Whether `counts` of choices lose more than Ω; the cut that says so is kept."""
        limit = self.rates.request.omega_limit
        if not len(counts) or math.isinf(limit):
            return False
        tolerance = QUALITY_TOLERANCE * float(self.rates.omega.max())
        if mildest_first_omega(self.rates.omega, counts) <= limit * (1 + WORTH_A_CUT) + tolerance:
            return False
        cut = quality_cut(self.rates.omega, limit + tolerance, counts)
        if cut.prices @ counts <= cut.limit + WORTH_A_CUT * limit + tolerance:
            return False
        self._cuts.append(cut)
        return True


def _stands(rates: Rates, kind: int) -> list[_Stand]:
    allowed = tuple(int(c) for c in np.flatnonzero(np.isfinite(rates.layer_s[Phase.DECODE][kind, :, 1])))
    plain = tuple(c for c in allowed if rates.request.choices[c] == UNQUANTISED)
    stands = [
        _Stand(kind, allowed, is_first=True),
        _Stand(kind, allowed, is_last=True),
        _Stand(kind, allowed, is_first=True, is_last=True),
        _Stand(kind, plain),
    ]
    if plain != allowed:
        stands.append(_Stand(kind, allowed, dequantises=True))
    return [stand for stand in stands if stand.choices]


def _decode_sizes(cell: Cell) -> NDArray[np.int64]:
    """Every size of a decode micro-batch that some replica of the cell can have."""
    (fewest, most), (few, many) = cell.sequences, cell.decode_micro_batches
    return np.arange(-(-fewest // many), (most if few == 1 else -(-most // (few - 1)) - 1) + 1)

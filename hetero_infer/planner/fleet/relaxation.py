"""The fewest devices, at a price for each kind, that can serve some sequences in some seconds: a linear programme.

`Cell` is a box of replicas: so many sequences, decode micro-batches, and seconds of their slowest stations. No replica
in it costs less than `cheapest_replica` says. What is dropped: order, contiguity, whole devices. What is kept: memory
with its buffers and ends, the quality limit, the closed form, and that a device holds a whole number of layers.
docs/planner.md has the proof.
"""

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from hetero_infer.planner.fleet.rates import Floats, Rates
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.workload import Phase

OPTIMAL, INFEASIBLE = 0, 2  # of linprog
SAFETY = 1e-7  # covers the simplex's own rounding
WORTH_A_CUT = 1e-3  # of Ω


@dataclass(frozen=True)
class Cell:
    """Ranges, ends included. `busy_s` is the seconds that the slowest stage needs for all prefill micro-batches less
    one pass, `round_s` for one round of all decode micro-batches."""

    sequences: tuple[int, int]
    decode_micro_batches: tuple[int, int]
    busy_s: tuple[float, float]
    round_s: tuple[float, float]


@dataclass(frozen=True)
class Cheapest:
    """`price` is a lower bound, `devices[kind]` what it pays for."""

    price: float
    devices: Floats


@dataclass(frozen=True)
class _Stand:
    """A device of `kind` at a place of the pipeline. With `dequantises` false where it may still quantise, the buffer
    is left out of its room."""

    kind: int
    is_first: bool
    is_last: bool
    choices: tuple[int, ...]
    dequantises: bool


@dataclass
class Relaxation:
    """`cuts` are linear bounds on the least Σω of counts of choices: rows (v, limit) with Σ v n ≤ limit."""

    rates: Rates
    cuts: list[tuple[Floats, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rates = self.rates
        self.num_layers = len(rates.omega)
        self.stands = [stand for kind in range(len(rates.kinds)) for stand in self._stands(kind)]
        self.columns = [(g, choice) for g, stand in enumerate(self.stands) for choice in stand.choices]
        self.at = np.array([g for g, _ in self.columns])
        self.choice = np.array([choice for _, choice in self.columns])
        self.kind = np.array([stand.kind for stand in self.stands])
        self.is_first = np.array([stand.is_first for stand in self.stands])
        self.is_last = np.array([stand.is_last for stand in self.stands])
        heaviest = np.argsort(-rates.weight_bytes[0])
        self.heavy = [heaviest[: n + 1] for n in range(len(heaviest))]
        self._room = cache(self._room_bytes)
        if not np.isinf(rates.request.omega_limit):
            for choice in range(rates.omega.shape[1]):
                self._cut_at(np.eye(rates.omega.shape[1])[choice] * self.num_layers)

    def _stands(self, kind: int) -> list[_Stand]:
        rates = self.rates
        allowed = tuple(np.flatnonzero(np.isfinite(rates.layer_s[Phase.DECODE][kind, :, 1])))
        plain = tuple(c for c in allowed if rates.request.choices[c] == UNQUANTISED)
        stands = [
            _Stand(kind, False, False, allowed, True),
            _Stand(kind, False, False, plain, False),
            _Stand(kind, True, False, allowed, False),
            _Stand(kind, False, True, allowed, False),
            _Stand(kind, True, True, allowed, False),
        ]
        return [stand for stand in stands if stand.choices and (not (stand.is_first and stand.is_last) or self._holds_all(stand))]

    def _holds_all(self, stand: _Stand) -> bool:
        room = self.rates.room_bytes(stand.kind, 1, 1, is_first=True, is_last=True)
        weights = self.rates.weight_bytes[stand.kind, list(stand.choices)].min()
        return len(self.rates.omega) * (weights + self.rates.sequence_bytes[stand.kind]) <= room

    def _room_bytes(self, decode_size: int) -> Floats:
        return np.array(
            [
                self.rates.room_bytes(s.kind, 1, decode_size, is_first=s.is_first, is_last=s.is_last)
                - s.dequantises * self.rates.dequantise_bytes(s.kind)
                for s in self.stands
            ],
            dtype=float,
        )

    def cheapest_replica(self, cell: Cell, prices: Floats, limit_s: float) -> Cheapest | None:
        """With at most `limit_s` for prefill and decode; None where no replica of the cell can."""
        for _ in range(4):
            found, counts = self._solve(cell, prices, limit_s)
            if found is None or not self._cut_at(counts):
                break
        return found

    def _solve(self, cell: Cell, prices: Floats, limit_s: float) -> tuple[Cheapest | None, Floats]:
        rates, workload = self.rates, self.rates.request.workload
        fewest, most = cell.sequences
        m1, m2 = cell.decode_micro_batches
        smallest = -(-fewest // m2)
        largest = most if m1 == 1 else -(-most // (m1 - 1)) - 1
        nothing = None, np.zeros(rates.omega.shape[1])
        room = self._room(smallest) if smallest <= largest else np.zeros(0)
        if smallest > largest:
            return nothing
        sizes = np.arange(smallest, largest + 1)
        rounds = np.maximum(m1, -(-fewest // sizes))
        fills = np.arange(1, most + 1)
        passes = -(-fewest // fills)
        full, last = max(0, workload.new_tokens - 2), min(1, workload.new_tokens - 1)

        pre, dec = rates.layer_s[Phase.PREFILL][:, :, fills], rates.layer_s[Phase.DECODE][:, :, sizes]
        once_p, all_p = pre.min(axis=2), (pre * passes).min(axis=2)
        once_d, all_d = dec.min(axis=2), (dec * rounds).min(axis=2)
        ends = {}
        for phase, span in ((Phase.PREFILL, fills), (Phase.DECODE, sizes)):
            ends[phase] = (self.is_first[:, None] * rates.embedding_s[phase][self.kind][:, span]
                           + self.is_last[:, None] * rates.head_s[phase][self.kind][:, span])
        end_once_p, end_all_p = ends[Phase.PREFILL].min(axis=1), (ends[Phase.PREFILL] * passes).min(axis=1)
        end_once_d, end_all_d = ends[Phase.DECODE].min(axis=1), (ends[Phase.DECODE] * rounds).min(axis=1)

        k, c = self.kind[self.at], self.choice
        busy, end_busy = (all_p - once_p)[k, c], end_all_p - end_once_p
        turn, end_turn = all_d[k, c], end_all_d
        drain = last * (1 - 1 / m1)
        weight = full + drain
        least_fill = self.num_layers * ((once_p + last * once_d).min())
        slack = limit_s - least_fill
        bytes_ = (rates.weight_bytes + fewest * rates.sequence_bytes[:, None])[k, c]
        a1, a2 = cell.busy_s
        d1, d2 = cell.round_s
        if min(room.max(), slack) <= 0:
            return nothing

        columns, stands = len(k), len(self.stands)
        on = np.zeros((stands, columns))
        on[self.at, np.arange(columns)] = 1

        rows, limits = [], []

        def per_device(coefficient: Floats, taken: Floats, cap: Floats | float, scale: float) -> None:
            rows.append(np.hstack([on * coefficient, np.diag(taken - cap)]) / scale)
            limits.append(np.zeros(stands))

        per_device(bytes_, np.zeros(stands), room, float(np.abs(room).max()))
        per_device(busy, end_busy, a2, limit_s)
        per_device(turn, end_turn, d2, limit_s / max(1, full))
        per_device(busy + weight * turn, end_busy + weight * end_turn, slack, limit_s)
        for heavy in self.heavy:
            is_heavy = np.isin(c, heavy)
            least = [np.full(stands, np.inf) for _ in range(4)]
            for values, best in zip((bytes_, busy, turn, busy + weight * turn), least, strict=True):
                np.minimum.at(best, self.at[is_heavy], values[is_heavy])
            caps = (room, a2 - end_busy, d2 - end_turn, slack - end_busy - weight * end_turn)
            with np.errstate(divide="ignore", invalid="ignore"):
                whole = np.min([np.where(best > 0, np.floor(cap / best * (1 + 1e-9)), self.num_layers) for cap, best in zip(caps, least, strict=True)], axis=0)
            whole = np.clip(whole, 0, self.num_layers)
            per_device(is_heavy.astype(float), np.zeros(stands), whole, 1.0)

        fill_n, fill_m = once_p[k, c] + last * once_d[k, c], end_once_p + last * end_once_d
        ring_n, ring_m = full * once_d[k, c], full * end_once_d
        fill_m = fill_m + ~self.is_last * (rates.fastest_send_s(Phase.PREFILL) + last * rates.fastest_send_s(Phase.DECODE))
        ring_m = ring_m + ~self.is_last * full * rates.fastest_send_s(Phase.DECODE)
        one_row = [
            (np.hstack([fill_n, fill_m]) / limit_s, (limit_s - a1 - weight * d1) / limit_s),
            (np.hstack([fill_n + ring_n, fill_m + ring_m]) / limit_s, (limit_s - a1 - drain * d1) / limit_s),
        ]
        for v, limit in self.cuts:
            scale = max(np.abs(v).max(), 1e-12)
            one_row.append((np.hstack([v[c], np.zeros(stands)]) / scale, limit / scale))
        for kind, count in enumerate(rates.counts):
            one_row.append((np.hstack([np.zeros(columns), self.kind == kind]), count))
        rows.append(np.array([row for row, _ in one_row]))
        limits.append(np.array([limit for _, limit in one_row]))
        equal = np.zeros((3, columns + stands))
        equal[0, :columns] = 1
        equal[1, columns:] = self.is_first
        equal[2, columns:] = self.is_last
        result = linprog(
            np.hstack([np.zeros(columns), prices[self.kind]]),
            csr_array(np.vstack(rows)),
            np.hstack(limits),
            csr_array(equal),
            np.array([self.num_layers, 1.0, 1.0]),
            method="highs-ds",
        )
        if result.status == INFEASIBLE:
            return nothing
        if result.status != OPTIMAL:
            return Cheapest(0.0, np.zeros(len(rates.kinds))), nothing[1]
        devices = np.bincount(self.kind, result.x[columns:], len(rates.kinds))
        counts = np.bincount(c, result.x[:columns], rates.omega.shape[1])
        return Cheapest(float(result.fun) * (1 - SAFETY), devices), counts

    def _cut_at(self, counts: Floats) -> bool:
        """Add the cut that counts of choices pass by most, if they pass Ω."""
        limit, omega = self.rates.request.omega_limit, self.rates.omega
        if np.isinf(limit):
            return False
        layers, choices = omega.shape
        scale = omega.max() or 1.0
        rows = np.zeros((layers * choices, choices + layers))
        rows[np.arange(layers * choices), np.tile(np.arange(choices), layers)] = 1
        rows[np.arange(layers * choices), choices + np.repeat(np.arange(layers), choices)] = 1
        result = linprog(
            -np.hstack([counts, np.ones(layers)]), csr_array(rows), omega.ravel() / scale, bounds=(-10, 10), method="highs-ds"
        )
        if result.status != OPTIMAL or -result.fun * scale <= limit * (1 + WORTH_A_CUT) + 1e-12:
            return False
        v = result.x[:choices] * scale
        self.cuts.append((v, limit + 1e-8 * scale - float((omega - v).min(axis=1).sum())))
        return True

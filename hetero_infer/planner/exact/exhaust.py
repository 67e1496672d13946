"""All pipelines of a node that could still be faster than a cutoff: what bounds cannot decide.

A label is a beginning of a pipeline: what its stages take in both phases, its slowest stations, its Σω. Of the labels
that end in the same state (`RingPaths`) one that is no better in any of these is dropped, and so is one whose cheapest
rest, under the prices that gave the node's bound, does not reach the cutoff (constrained shortest paths by labels:
Desrochers and Soumis 1988, with Lagrangian completion bounds). In: a relaxed node. Out: the best found, and whether
the search came to its end.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hetero_infer.planner.exact.arrays import Bools, Floats, Integers
from hetero_infer.planner.exact.relaxation import Dual, Relaxation
from hetero_infer.planner.exact.ring_paths import CostToGo, Hop
from hetero_infer.planner.exact.space import Pick, Pipeline, Space
from hetero_infer.spec.workload import Phase

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
BLOCK = 256  # rows compared at once
State = tuple[int, int, int]  # devices used, class of the last one, layers placed


@dataclass(frozen=True)
class Exhausted:
    """`is_complete`: nothing else in the node is faster than the cutoff."""

    found: Pipeline | None
    is_complete: bool


@dataclass(frozen=True)
class _Labels:
    """A row per beginning. `values` are L_p, L_d, M_p, M_d and Σω so far, `cost` is the sum under the prices; `origin`
    says where a row comes from: a number of `_Walk.sources`, the row there, the row of the options taken."""

    values: Floats
    cost: Floats
    origin: Integers

    def only(self, rows: Integers) -> "_Labels":
        return _Labels(self.values[rows], self.cost[rows], self.origin[rows])

    @classmethod
    def joined(cls, parts: list["_Labels"]) -> "_Labels":
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "cost", "origin")))


def exhaust(
    space: Space,
    relaxation: Relaxation,
    dual: Dual,
    cut_s: float,
    most_labels: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Exhausted:
    """Make up to `most_labels` labels, while it is not over."""
    best: Pipeline | None = None
    is_complete = True
    walks = relaxation.costs_to_go(dual.omega_price, dual.period_share)
    for group, to_go in enumerate(walks):
        walk = _Walk(space, relaxation, dual, to_go, group, cut_s, most_labels)
        is_complete &= walk.to_the_end(is_over)
        if walk.best:
            best, cut_s = walk.best, walk.best.seconds
    return Exhausted(best, is_complete)


class _Walk:
    """From one group of first stages, level by level: a level is a number of devices used."""

    def __init__(
        self,
        space: Space,
        relaxation: Relaxation,
        dual: Dual,
        to_go: CostToGo,
        group: int,
        cut_s: float,
        most_labels: int,
    ) -> None:
        self._space = space
        self._relaxation = relaxation
        self._share = dual.period_share
        self._prices = relaxation.prices(dual.omega_price, dual.period_share)
        self._credit = dual.omega_price * space.omega_limit if dual.omega_price else 0.0
        self._to_go = to_go
        self._group = group
        self._cut_s = cut_s
        self._labels_left = most_labels
        self._sources: list[tuple[Hop, _Labels]] = []
        self.best: Pipeline | None = None

    def to_the_end(self, is_over: Callable[[], bool]) -> bool:
        """Whether there were labels and time enough."""
        nothing = _Labels(np.zeros((1, 5)), np.zeros(1), np.full((1, 3), -1))
        level: dict[State, list[_Labels]] = defaultdict(list)
        for c in self._space.first_groups[self._group]:
            self._extend(level, nothing, -1, 0, c, 0)
        while level:
            following: dict[State, list[_Labels]] = defaultdict(list)
            for (used, last, start), parts in level.items():
                labels = _undominated(_Labels.joined(parts))
                self._labels_left -= len(labels.cost)
                if self._labels_left < 0 or is_over():
                    return False
                for c in self._space.paths.unused(used):
                    self._extend(following, labels, last, used, c, start)
            level = following
        return True

    def _extend(
        self, level: dict[State, list[_Labels]], labels: _Labels, last: int, used: int, device_class: int, start: int
    ) -> None:
        """By one stage on a class: whatever could be faster than the cutoff."""
        paths = self._space.paths
        more = paths.with_one_more(used, device_class)
        wires = self._wires(last, device_class)
        for stop in self._promising(labels, wires, last, more, device_class, start):
            hop = Hop(device_class, start, stop)
            extended = self._by(labels, wires, last, more, hop)
            if not len(extended.cost):
                continue
            if stop == paths.num_layers:
                self._finish(extended, device_class, is_alone=last < 0)
            else:
                level[more, device_class, stop].append(extended)

    def _promising(
        self, labels: _Labels, wires: dict[Phase, float], last: int, more: int, device_class: int, start: int
    ) -> Iterator[int]:
        """Where a stage may stop, judged by the cheapest label and the cheapest option."""
        paths, to_go = self._space.paths, self._to_go
        stage, alike = to_go.stages[device_class], paths.sends_alike[device_class]
        base = float(labels.cost.min()) + sum(self._prices.seconds[phase] * wires[phase] for phase in Phase)
        base += float(self._relaxation.floors_s(self._share)) - self._credit
        if start == 0:
            costs = stage.first[1:] + to_go.go[more, alike, 1:]
        else:
            lengths = np.arange(1, min(len(stage.middle), paths.num_layers - start) + 1)
            costs = stage.middle[lengths - 1, start] + to_go.go[more, alike, start + lengths]
        for index in np.flatnonzero(base + costs < self._cut_s):
            yield start + 1 + int(index)
        if to_go.can_end[more]:
            ending = stage.only if start == 0 else stage.last[start] + to_go.back[alike]
            if base + ending < self._cut_s:
                yield paths.num_layers

    def _wires(self, last: int, device_class: int) -> dict[Phase, float]:
        """From the last stage to the next; none before the first."""
        if last < 0:
            return dict.fromkeys(Phase, 0.0)
        alike = self._space.paths.sends_alike[last]
        return {phase: float(self._space.wires.send[phase][alike, device_class]) for phase in Phase}

    def _by(self, labels: _Labels, wires: dict[Phase, float], last: int, more: int, hop: Hop) -> _Labels:
        paths, to_go = self._space.paths, self._to_go
        alike = paths.sends_alike[hop.device_class]
        is_end = hop.stop == paths.num_layers
        rest = float(to_go.back[alike]) * (last >= 0) if is_end else float(to_go.go[more, alike, hop.stop])
        options = self._relaxation.options(hop)
        arriving = sum(self._prices.seconds[phase] * wires[phase] for phase in Phase)
        cost = labels.cost[:, None] + (options.costs(self._prices) + arriving)
        slowest = [
            np.maximum(np.maximum(labels.values[:, 2 + k, None], options.seconds[phase]), wires[phase])
            for k, phase in enumerate((PREFILL, DECODE))
        ]
        bound = cost + (rest - self._credit) + self._relaxation.floors_s(self._share, *slowest)
        rows, picked = np.nonzero(bound < self._cut_s)
        seconds = [options.seconds[phase][picked] + wires[phase] for phase in (PREFILL, DECODE)]
        values = np.column_stack(
            [
                labels.values[rows, 0] + seconds[0],
                labels.values[rows, 1] + seconds[1],
                slowest[0][rows, picked],
                slowest[1][rows, picked],
                labels.values[rows, 4] + options.omega[picked],
            ]
        )
        keeps = np.flatnonzero(values[:, 4] <= self._space.omega_limit + self._space.omega_tolerance)
        self._sources.append((hop, labels))
        origin = np.column_stack([np.full(len(rows), len(self._sources) - 1), rows, picked])
        return _Labels(values, cost[rows, picked], origin).only(keeps)

    def _finish(self, labels: _Labels, last: int, *, is_alone: bool) -> None:
        """The fastest of whole pipelines that end on class `last`, if it is faster than the cutoff."""
        alike = self._space.paths.sends_alike[last]
        back = [0.0 if is_alone else self._space.wires.back[phase][self._group, alike] for phase in (PREFILL, DECODE)]
        passes, slowest = labels.values[:, :2] + back, np.maximum(labels.values[:, 2:4], back)
        form = self._space.objective
        seconds = (
            form.passes[PREFILL] * passes[:, 0]
            + form.slowest[PREFILL] * slowest[:, 0]
            + form.rounds * np.maximum(form.micro_batches[DECODE] * slowest[:, 1], passes[:, 1])
            + form.passes[DECODE] * passes[:, 1]
            + form.slowest[DECODE] * slowest[:, 1]
        )
        for row in np.argsort(seconds):
            if seconds[row] >= self._cut_s:
                return
            pipeline = self._space.pipeline(self._picks(labels, int(row)))
            if pipeline.seconds < self._cut_s and self._space.keeps_quality(pipeline.omega):
                self.best, self._cut_s = pipeline, pipeline.seconds
                return

    def _picks(self, labels: _Labels, row: int) -> list[Pick]:
        picks: list[Pick] = []
        source, before, picked = labels.origin[row]
        while source >= 0:
            hop, parent = self._sources[source]
            picks.append(self._relaxation.pick(hop, int(picked)))
            source, before, picked = parent.origin[before]
        return picks[::-1]


def _undominated(labels: _Labels) -> _Labels:
    """Less its rows that another row is at least as good as in everything."""
    labels = labels.only(np.lexsort(labels.values.T[::-1]))  # so that only earlier rows can be
    values = labels.values
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(values), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(values)))
        rows = rows[~_is_beaten(values[rows], values[kept])]
        within = (values[rows, None] <= values[rows]).all(axis=2)  # [better, worse]
        rows = rows[~np.triu(within, 1).any(axis=0)]
        kept = np.concatenate([kept, rows])
    return labels.only(kept)


def _is_beaten(values: Floats, by: Floats) -> Bools:
    """Which rows some row of `by` is at least as good as in everything."""
    beaten = np.zeros(len(values), dtype=bool)
    for start in range(0, len(by), BLOCK):
        beaten |= (by[start : start + BLOCK, None] <= values).all(axis=2).any(axis=0)
    return beaten

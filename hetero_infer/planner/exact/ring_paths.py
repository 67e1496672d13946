"""The cheapest pipelines through all orders and subsets of the devices at once: a shortest path.

A state is (how many devices of each class are used, the class of the last one, the layers placed so far). It stands
for every order of the devices before it, so all interleavings and all subsets are covered. In: for each class, the
cost of every interval of layers. Out: the cheapest way to the end from each state (`CostToGo`).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hetero_infer.planner.exact.arrays import Bools, Floats

MOST_STATES = 2_000_000  # with the layers: what a pass can look at in about a second


class TooManyStates(Exception):
    """So many classes of devices that not all their orders can be looked at."""


@dataclass(frozen=True)
class Hop:
    """One stage of a path: a device of class `device_class` with the decoder layers from `start` to `stop`."""

    device_class: int
    start: int
    stop: int


@dataclass(frozen=True)
class StageCosts:
    """Of the stages on one class; infinite where none is allowed.

    `middle[length - 1, start]`, `first[stop]` for layers 0 to `stop`, `last[start]` to the end, `only` for all layers.
    """

    middle: Floats
    first: Floats
    last: Floats
    only: float


class RingPaths:
    """The states of a set of devices: `multiplicity[c]` devices of class c, `num_layers` decoder layers.

    `sends_alike[c]`: the classes with the same number cost the same to send from, so they share states.
    """

    def __init__(self, multiplicity: Sequence[int], num_layers: int, sends_alike: Sequence[int]) -> None:
        self.num_layers = num_layers
        self.multiplicity = tuple(multiplicity)
        self.sends_alike = tuple(sends_alike)
        self.num_classes = len(multiplicity)
        radix = np.array([1, *itertools.accumulate((m + 1 for m in multiplicity), lambda a, b: a * b)])
        self._stride = radix[:-1]
        self.num_used = int(radix[-1])
        self._num_groups = max(sends_alike) + 1
        if self.num_used * self._num_groups**2 * num_layers > MOST_STATES:
            raise TooManyStates
        self._counts = used = (np.arange(self.num_used)[:, None] // self._stride) % (np.array(multiplicity) + 1)
        level = used.sum(axis=1)
        # By number of devices used, from most to least, and class: the states that can take another of the class.
        self._levels = [
            [np.flatnonzero((level == count) & (used[:, c] < multiplicity[c])) for c in range(self.num_classes)]
            for count in range(sum(multiplicity) - 1, 0, -1)
        ]

    def cost_to_go(
        self, stages: Sequence[StageCosts], send: Floats, back: Sequence[float], uses: Sequence[range]
    ) -> "CostToGo":
        """The cheapest rest of a pipeline, from every state.

        Args:
            stages: per class.
            send: [group, class], from the last device to the next.
            back: per group, from the last device of the pipeline to the first.
            uses: per class, how many of its devices the whole pipeline may use.
        """
        num_layers = self.num_layers
        fewest, most = (np.array([f(use) for use in uses]) for f in (min, max))
        ends = ((self._counts >= fewest) & (self._counts <= most)).all(axis=1)
        go = np.full((self.num_used, self._num_groups, num_layers + 1), np.inf)
        for level in self._levels:
            for c, states in enumerate(level):
                states = states[self._counts[states, c] < most[c]]
                if len(states):
                    after = states + self._stride[c]
                    last = stages[c].last + back[self.sends_alike[c]]
                    rest = self._rest(
                        stages[c], go[after, self.sends_alike[c]], np.where(ends[after], 0.0, np.inf), last
                    )
                    for group in range(self._num_groups):
                        go[states, group] = np.minimum(go[states, group], rest + send[group, c])
        return CostToGo(self, stages, send, back, go, ends)

    def unused(self, used: int) -> list[int]:
        """The classes that have a device left."""
        return [
            c
            for c in range(self.num_classes)
            if (used // self._stride[c]) % (self.multiplicity[c] + 1) < self.multiplicity[c]
        ]

    def with_one_more(self, used: int, device_class: int) -> int:
        return used + int(self._stride[device_class])

    def _rest(self, stage: StageCosts, after: Floats, ending: Floats, last: Floats) -> Floats:
        """[states, layers]: a stage, and what comes after it: others, or nothing where `ending` is 0."""
        rest = ending[:, None] + last
        for length in range(1, len(stage.middle) + 1):
            stop = self.num_layers - length + 1
            np.minimum(rest[:, :stop], stage.middle[length - 1, :stop] + after[:, length:], out=rest[:, :stop])
        return rest


@dataclass(frozen=True)
class CostToGo:
    """`go[used, group, layer]`: the least cost of the stages after a device of `group` that ends before `layer`."""

    paths: RingPaths
    stages: Sequence[StageCosts]
    send: Floats
    back: Sequence[float]
    go: Floats
    can_end: Bools

    def starts(self, allowed: Sequence[int]) -> Iterator[tuple[float, Hop]]:
        """The least cost of a whole pipeline, by its first stage, on a class of `allowed`."""
        paths = self.paths
        for c in allowed:
            stage, used = self.stages[c], paths.with_one_more(0, c)
            yield stage.only if self.can_end[used] else np.inf, Hop(c, 0, paths.num_layers)
            totals = stage.first + self.go[used, paths.sends_alike[c]]
            stop = int(np.argmin(totals))
            yield float(totals[stop]), Hop(c, 0, stop)

    def cheapest(self, allowed: Sequence[int]) -> tuple[float, tuple[Hop, ...]]:
        """The cheapest pipeline; infinite and empty where there is none."""
        cost, hop = min(self.starts(allowed), key=lambda start: start[0])
        if not np.isfinite(cost):
            return np.inf, ()
        hops = [hop]
        used = self.paths.with_one_more(0, hop.device_class)
        while hops[-1].stop < self.paths.num_layers:
            hops.append(self._next(used, hops[-1]))
            used = self.paths.with_one_more(used, hops[-1].device_class)
        return cost, tuple(hops)

    def _next(self, used: int, hop: Hop) -> Hop:
        """The stage that `go` counted on."""
        paths = self.paths
        group, start = paths.sends_alike[hop.device_class], hop.stop
        best, found = np.inf, hop
        for c in paths.unused(used):
            more = paths.with_one_more(used, c)
            stage, after = self.stages[c], self.go[more, paths.sends_alike[c]]
            num_lengths = min(len(stage.middle), paths.num_layers - start)
            lengths = np.arange(1, num_lengths + 1)
            costs = stage.middle[lengths - 1, start] + after[start + lengths]
            ending = float(stage.last[start] + self.back[paths.sends_alike[c]]) if self.can_end[more] else np.inf
            if self.send[group, c] + ending < best:
                best, found = float(self.send[group, c] + ending), Hop(c, start, paths.num_layers)
            if num_lengths and self.send[group, c] + costs.min() < best:
                length = int(np.argmin(costs)) + 1
                best, found = float(self.send[group, c] + costs[length - 1]), Hop(c, start, start + length)
        return found

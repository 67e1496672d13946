"""`FleetSearch`: templates of replicas, chosen and planned in turn.

A guess says what each template serves; a mixed-integer programme chooses among all of them; what it chose is really
planned, which corrects the guess, and it chooses again. New templates are cuts of the devices sorted by speed, even
splits, and what comes of moving a device between replicas of the best fleet.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

from hetero_infer.planner.fleet.pipelines import Pipeline, PipelineSearch
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.templates import SHARES, Template, guess_seconds, most_sequences
from hetero_infer.spec.workload import Phase

Devices = tuple[int, ...]
CUTS = 16  # of the line of devices
BISECTIONS = 9
CLOSE = 3e-3  # seconds that a choice promised and its plans keep
OPTIMISM = 0.97


class FleetSearch:
    """`best` are the pipelines of the fastest fleet so far, `best_s` the seconds of its slowest replica."""

    def __init__(self, rates: Rates, replicas: int | None, deadline_s: float) -> None:
        self.rates, self.replicas, self.deadline_s = rates, replicas, deadline_s
        self.counts: Devices = tuple(int(count) for count in rates.counts)
        self.batch_size = rates.request.workload.batch_size
        self.best: tuple[Pipeline, ...] = ()
        self.best_s = math.inf
        self._pipelines = PipelineSearch(rates)
        self._templates: dict[Devices, Template] = {}
        self._correction = 1.0
        self._best_templates: list[Devices] = []

    def run(self) -> None:
        """Until the deadline, or until nothing new helps."""
        self._add(itertools.chain(self._even_splits(), self._stretches()))
        failures = 0
        while time.monotonic() < self.deadline_s and failures < 4:
            before_s = self.best_s
            self._choose_and_plan()
            if self.best_s >= before_s * (1 - 1e-4):
                failures += 1
                self._add(self._neighbours())
            else:
                failures = 0

    def _choose_and_plan(self) -> None:
        templates = list(self._templates.values())
        chosen, limit_s = self._fastest_choice(templates)
        if not chosen:
            return
        replicas = [(templates[t], share) for t, (copies, share) in chosen.items() for _ in range(copies)]
        surplus = sum(share for _, share in replicas) - self.batch_size
        fair = self.batch_size / (self.batch_size + surplus)
        shares = [int(share * fair) for _, share in replicas]
        for i in range(self.batch_size - sum(shares)):
            shares[i % len(shares)] += 1
        found = []
        for (template, _), share in zip(replicas, shares, strict=True):
            if share and share not in template.found:
                template.found[share] = self._pipelines.best(template.devices, share)
            found.append(template.found.get(share))
        self._correct()
        if all(found):
            seconds = max(pipeline.seconds for pipeline in found if pipeline)
            if seconds < self.best_s:
                self.best, self.best_s = tuple(p for p in found if p), seconds
                self._best_templates = [template.devices for template, _ in replicas]

    def _fastest_choice(self, templates: list[Template]) -> tuple[dict[int, tuple[int, int]], float]:
        """By bisection of the time within which the batch can be served."""
        low, high = 0.0, self.best_s * 1.02 if self.best else 2.0 * max(t.guess_s[np.isfinite(t.guess_s)].max(initial=0) for t in templates)
        best: dict[int, tuple[int, int]] = {}
        for _ in range(BISECTIONS + (0 if self.best else 6)):
            middle = (low + high) / 2 if low or not self.best else 0.9 * high
            chosen = most_sequences(templates, self.counts, middle, self.replicas, self._correction)
            if sum(copies * share for copies, share in chosen.values()) >= self.batch_size:
                best, high = chosen, middle
            else:
                low = middle
            if high - low < 1e-3 * high:
                break
        return best, high

    def _correct(self) -> None:
        """Guesses by how far the others were off; a little less, so that what is new gets a chance."""
        ratios = [
            pipeline.seconds / np.interp(share, template.shares, template.guess_s)
            for template in self._templates.values()
            for share, pipeline in template.found.items()
            if pipeline
        ]
        if ratios:
            self._correction = float(np.quantile(ratios, 0.25)) * OPTIMISM

    def _add(self, ideas: Iterator[Devices]) -> None:
        shares = np.unique(np.geomspace(1, self.batch_size, SHARES).round())
        for devices in ideas:
            if devices not in self._templates and 0 < sum(devices) <= len(self.rates.omega):
                guess_s = guess_seconds(self.rates, devices, shares)
                if np.isfinite(guess_s).any():
                    self._templates[devices] = Template(devices, shares, guess_s)

    def _even_splits(self) -> Iterator[Devices]:
        most = self.replicas or sum(self.counts)
        for replicas in range(self.replicas or 1, most + 1):
            low = tuple(count // replicas for count in self.counts)
            left = [count % replicas for count in self.counts]
            yield low
            for devices in set(itertools.product(*({0, min(1, rest)} for rest in left))):
                yield tuple(a + b for a, b in zip(low, devices, strict=True))

    def _stretches(self) -> Iterator[Devices]:
        """Of the line of all devices, sorted by speed, and even parts of a stretch."""
        decode_s = self.rates.layer_s[Phase.DECODE][:, :, 1].min(axis=1)
        line = [kind for kind in np.argsort(decode_s) for _ in range(self.counts[kind])]
        ends = sorted({round(i * len(line) / CUTS) for i in range(CUTS + 1)} | set(np.flatnonzero(np.diff(line)) + 1))
        for start, stop in itertools.combinations(ends, 2):
            devices = np.bincount(line[start:stop], minlength=len(self.counts))
            for copies in range(1, 9):
                yield tuple(int(count) for count in devices // copies)

    def _neighbours(self) -> Iterator[Devices]:
        """A device or two moved to or from each replica of the best fleet."""
        for devices in set(self._best_templates):
            for steps in (1, 2):
                for kind in range(len(devices)):
                    for step in (-steps, steps):
                        moved = devices[kind] + step
                        if 0 <= moved <= self.counts[kind]:
                            yield (*devices[:kind], moved, *devices[kind + 1 :])
            for out, into in itertools.permutations(range(len(devices)), 2):
                if devices[out] and devices[into] < self.counts[into]:
                    swapped = list(devices)
                    swapped[out] -= 1
                    swapped[into] += 1
                    yield tuple(swapped)

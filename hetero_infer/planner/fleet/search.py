"""`FleetSearch`: templates of replicas, chosen among and planned in turn.

A guess says how many sequences each template serves in a time; a mixed-integer programme chooses among all of them;
what it chose is really planned, which corrects the guess, and it chooses again. Templates are even splits of all
devices, stretches of the line of devices sorted by speed, and what comes of moving a device in the best fleet so far.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator

import numpy as np

from hetero_infer.planner.fleet.pipelines import Pipeline, PipelineSearch
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.templates import Template, guess_seconds, most_sequences
from hetero_infer.spec.workload import Phase

Devices = tuple[int, ...]  # of each kind
SHARES = 10  # at which a template's seconds are guessed
LINE_CUTS = 16  # of the line of devices
MOST_COPIES = 8  # that a stretch of it is parted into
BISECTIONS = 12
CLOSE = 1e-3  # of the seconds: bisected no further, and no improvement
OPTIMISM = 0.97  # of a guess, so that new templates get a chance
MOST_FAILURES = 4  # rounds without improvement


class FleetSearch:
    def __init__(self, rates: Rates, replicas: int | None, deadline_s: float) -> None:
        """`deadline_s` is on the monotonic clock; None leaves the number of replicas open."""
        self._rates, self._replicas, self._deadline_s = rates, replicas, deadline_s
        self._counts: Devices = tuple(len(devices) for devices in rates.kinds)
        self._batch_size = rates.request.workload.batch_size
        self._pipelines = PipelineSearch(rates)
        self._templates: dict[Devices, Template] = {}
        self._correction = 1.0
        self._best: list[tuple[Template, Pipeline]] = []

    def best(self) -> list[Pipeline]:
        """The pipelines of the fastest fleet, until the deadline or until nothing new helps; empty if there is none."""
        self._add(itertools.chain(self._even_splits(), self._stretches()))
        failures = 0
        while failures < MOST_FAILURES:
            before_s = self._best_s
            self._choose_and_plan()
            if time.monotonic() > self._deadline_s:
                break
            failures = 0 if self._best_s < before_s * (1 - CLOSE) else failures + 1
            if failures:
                self._add(self._neighbours())
        return [pipeline for _, pipeline in self._best]

    @property
    def _best_s(self) -> float:
        return max((pipeline.seconds for _, pipeline in self._best), default=math.inf)

    def _choose_and_plan(self) -> None:
        replicas = self._fastest_choice()
        found: list[tuple[Template, Pipeline]] = []
        for template, share in replicas:
            if share not in template.found:
                template.found[share] = self._pipelines.best(template.devices, share)
            if pipeline := template.found[share]:
                found.append((template, pipeline))
        self._correct()
        if len(found) == len(replicas) and found:
            if max(pipeline.seconds for _, pipeline in found) < self._best_s:
                self._best = found

    def _fastest_choice(self) -> list[tuple[Template, int]]:
        """Templates and shares that serve the batch soonest, as far as is known: by bisection of the time."""
        templates = list(self._templates.values())
        low_s, high_s = 0.0, self._best_s * (1 + CLOSE)
        if not self._best:
            high_s = 2 * max((t.guess_s[np.isfinite(t.guess_s)].max() for t in templates), default=0.0)
        best: list[tuple[Template, int]] = []
        for _ in range(BISECTIONS):
            middle_s = (low_s + high_s) / 2 if low_s or not self._best else 0.9 * high_s
            chosen = most_sequences(templates, self._counts, middle_s, self._replicas, self._correction)
            if sum(share for _, share in chosen) >= self._batch_size:
                best, high_s = chosen, middle_s
            else:
                low_s = middle_s
            if high_s - low_s < CLOSE * high_s:
                break
        return self._without_surplus(best)

    def _without_surplus(self, replicas: list[tuple[Template, int]]) -> list[tuple[Template, int]]:
        """Shares in proportion, whole, and of the batch's size together; a replica that is left with none goes."""
        total = sum(share for _, share in replicas)
        stops = [round(stop * self._batch_size / total) for stop in itertools.accumulate(share for _, share in replicas)]
        shares = [stop - start for start, stop in itertools.pairwise([0, *stops])]
        return [(template, share) for (template, _), share in zip(replicas, shares, strict=True) if share]

    def _correct(self) -> None:
        ratios = [
            pipeline.seconds / np.interp(share, template.shares, template.guess_s)
            for template in self._templates.values()
            for share, pipeline in template.found.items()
            if pipeline
        ]
        if ratios:
            self._correction = float(np.quantile(ratios, 0.25)) * OPTIMISM

    def _add(self, ideas: Iterable[Devices]) -> None:
        shares = np.unique(np.geomspace(1, self._batch_size, SHARES).round())
        for devices in ideas:
            if devices not in self._templates and 0 < sum(devices) <= len(self._rates.omega):
                guess_s = guess_seconds(self._rates, devices, shares)
                if np.isfinite(guess_s).any():
                    self._templates[devices] = Template(devices, shares, guess_s)

    def _even_splits(self) -> Iterator[Devices]:
        for replicas in range(1, sum(self._counts) + 1) if self._replicas is None else (self._replicas,):
            each = [(count // replicas, -(-count // replicas)) for count in self._counts]
            yield from itertools.product(*({low, high} for low, high in each))

    def _stretches(self) -> Iterator[Devices]:
        """Of the line of all devices, sorted by speed, and even parts of a stretch."""
        decode_s = self._rates.layer_s[Phase.DECODE][:, :, 1].min(axis=1)
        line = [int(kind) for kind in np.argsort(decode_s) for _ in range(self._counts[kind])]
        ends = {round(cut * len(line) / LINE_CUTS) for cut in range(LINE_CUTS + 1)}
        ends |= {stop for stop in range(1, len(line)) if line[stop - 1] != line[stop]}
        for start, stop in itertools.combinations(sorted(ends), 2):
            devices = np.bincount(line[start:stop], minlength=len(self._counts))
            for copies in range(1, MOST_COPIES + 1):
                yield tuple(int(count) for count in devices // copies)

    def _neighbours(self) -> Iterator[Devices]:
        """One device more, less or another in a replica of the best fleet."""
        kinds = range(len(self._counts))
        for template, _ in self._best:
            for less, more in itertools.product((*kinds, None), repeat=2):
                moved = [count - (k == less) + (k == more) for k, count in enumerate(template.devices)]
                if all(0 <= count <= most for count, most in zip(moved, self._counts, strict=True)):
                    yield tuple(moved)

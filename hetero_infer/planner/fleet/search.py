"""`FleetSearch`: templates of replicas, chosen among and planned in turn.

A guess says how many sequences each template serves in a time; a mixed-integer programme chooses among all of them;
what it chose is really planned, which corrects the guess, and it chooses again. Templates are even splits of all
devices, stretches of the line of devices sorted by speed, and what comes of moving devices in a good fleet.
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
FEW_TEMPLATES = 200
LINE_CUTS = 16  # of the line of devices
MOST_COPIES = 8  # that a stretch of it is parted into
BISECTIONS = 12
CLOSE = 1e-3  # of the seconds: bisected no further, and no improvement
OPTIMISM, NEIGHBOURS_OPTIMISM = 0.97, 0.985  # of a guess, so that new templates get a chance
NEAR = 1.03  # the best: worth looking beside
MOVES = (1, 2, 4)  # devices at once
PART_DEVICES = 48  # at least, in one of the cluster's equal parts
PART_SHARE = 0.5  # of the time, for it
MOST_FAILURES = 12  # rounds without improvement


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
        """The pipelines of the fastest fleet, until the deadline or until nothing new helps; empty if there is none.

        A cluster of equal parts is a fleet of each part first: its templates are good ones, and there are fewer.
        """
        alike = math.gcd(*self._counts, self._batch_size)
        most_parts = sum(self._counts) // PART_DEVICES
        parts = max((n for n in range(1, most_parts + 1) if alike % n == 0), default=1)
        if parts > 1 and self._replicas is None:
            whole = self._counts, self._batch_size, self._deadline_s
            self._counts = tuple(count // parts for count in self._counts)
            self._batch_size //= parts
            self._deadline_s -= (1 - PART_SHARE) * (self._deadline_s - time.monotonic())
            self._add(self._ideas())
            self._improve()
            self._best *= parts
            self._counts, self._batch_size, self._deadline_s = whole
        if not self._best:
            self._add(self._ideas())
        self._improve()
        return [pipeline for _, pipeline in self._best]

    def _ideas(self) -> Iterator[tuple[Devices, None]]:
        return itertools.chain(self._even_splits(), self._stretches(), self._everything())

    def _improve(self) -> None:
        failures = 0
        while failures < MOST_FAILURES and (not self._best or time.monotonic() < self._deadline_s):
            before_s, known = self._best_s, self._num_known
            self._choose_and_plan()
            if self._num_known == known:
                break
            failures = 0 if self._best_s < before_s * (1 - CLOSE) else failures + 1

    @property
    def effort(self) -> str:
        planned = sum(len(template.found) for template in self._templates.values())
        return f"{len(self._templates)} templates of replicas, {planned} planned"

    @property
    def _num_known(self) -> int:
        """Templates, and pipelines planned or given up."""
        return sum(1 + len(template.found) for template in self._templates.values())

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
        if found and len(found) == len(replicas):
            seconds = max(pipeline.seconds for _, pipeline in found)
            if seconds < self._best_s * NEAR:
                self._add(self._neighbours(found))
            if seconds < self._best_s:
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
            if high_s - low_s < CLOSE * high_s or time.monotonic() > self._deadline_s:
                break
        return self._without_surplus(best)

    def _without_surplus(self, replicas: list[tuple[Template, int]]) -> list[tuple[Template, int]]:
        """Shares in proportion, whole, and of the batch's size together; a replica that is left with none goes."""
        ends = [0, *itertools.accumulate(share for _, share in replicas)]
        stops = [round(end * self._batch_size / max(1, ends[-1])) for end in ends]
        shares = [stop - start for start, stop in itertools.pairwise(stops)]
        return [(template, share) for (template, _), share in zip(replicas, shares, strict=True) if share]

    def _correct(self) -> None:
        ratios = [ratio for template in self._templates.values() for ratio in template.ratios.values()]
        if ratios:
            self._correction = float(np.quantile(ratios, 0.25)) * OPTIMISM

    def _add(self, ideas: Iterable[tuple[Devices, float | None]]) -> None:
        """Device counts, and what is known of how to correct their guess."""
        shares = np.unique(np.geomspace(1, self._batch_size, SHARES).round())
        for devices, correction in ideas:
            if devices not in self._templates and 0 < sum(devices) <= len(self._rates.omega):
                guess_s = guess_seconds(self._rates, devices, shares)
                if np.isfinite(guess_s).any():
                    self._templates[devices] = Template(devices, shares, guess_s, correction)

    def _even_splits(self) -> Iterator[tuple[Devices, None]]:
        for replicas in range(1, sum(self._counts) + 1) if self._replicas is None else (self._replicas,):
            each = [(count // replicas, -(-count // replicas)) for count in self._counts]
            yield from ((devices, None) for devices in itertools.product(*({low, high} for low, high in each)))

    def _everything(self) -> Iterator[tuple[Devices, None]]:
        """Every template of a small cluster."""
        if math.prod(count + 1 for count in self._counts) <= FEW_TEMPLATES:
            yield from ((devices, None) for devices in itertools.product(*(range(n + 1) for n in self._counts)))

    def _stretches(self) -> Iterator[tuple[Devices, None]]:
        """Of the line of all devices, sorted by speed, and even parts of a stretch."""
        decode_s = self._rates.layer_s[Phase.DECODE][:, :, 1].min(axis=1)
        line = [int(kind) for kind in np.argsort(decode_s) for _ in range(self._counts[kind])]
        ends = {round(cut * len(line) / LINE_CUTS) for cut in range(LINE_CUTS + 1)}
        ends |= {stop for stop in range(1, len(line)) if line[stop - 1] != line[stop]}
        for start, stop in itertools.combinations(sorted(ends), 2):
            devices = np.bincount(line[start:stop], minlength=len(self._counts))
            for copies in range(1, MOST_COPIES + 1):
                yield tuple(int(count) for count in devices // copies), None

    def _neighbours(self, fleet: list[tuple[Template, Pipeline]]) -> Iterator[tuple[Devices, float]]:
        """A few devices more, less or others in one of its replicas; as good a guess as that one's, and a bit."""
        kinds = range(len(self._counts))
        for template, pipeline in fleet:
            correction = template.ratios[pipeline.share] * NEIGHBOURS_OPTIMISM
            for number, less, more in itertools.product(MOVES, (*kinds, None), (*kinds, None)):
                moved = tuple(n + number * ((k == more) - (k == less)) for k, n in enumerate(template.devices))
                if all(0 <= n <= most for n, most in zip(moved, self._counts, strict=True)):
                    yield moved, correction

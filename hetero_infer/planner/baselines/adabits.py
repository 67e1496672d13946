"""adabits, as LLM-PQ calls it: the bits that lose least quality in the memory there is, with no thought of time.

The authors solve one ILP over partition and bits, in hostfile order, with ⌈B/N⌉ sequences per micro-batch. Here it is a
dynamic programme with the same answer, for ⌈B/N⌉ and for 1, which leaves more memory. Where memory is plenty many
partitions lose the same, and the authors take any: we also look at the even one and the one in proportion to memory,
and count the fastest of all.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hetero_infer.planner.baselines.draft import best_sized, fastest, with_highest_ends
from hetero_infer.planner.baselines.memory_proportional import proportional_counts
from hetero_infer.planner.baselines.uniform import even_counts
from hetero_infer.planner.exact.least_omega import LeastOmega, TooManyCounts
from hetero_infer.planner.exact.stage_options import fitting
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.problem import LayerChoices, PlanningProblem, StageTerms, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import least_omega_layers
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.plan import Plan, num_micro_batches

Floats = NDArray[np.float64]


def adabits(request: PlanRequest) -> Plan | NoPlan:
    """All devices in hostfile order, the least Σω that fits memory, the best sizes."""
    request, devices = with_highest_ends(request), request.cluster.devices
    sizes = num_micro_batches(request.workload.batch_size, len(devices)), 1
    problems = [build_problem(request, size, size) for size in sizes]
    try:
        least = LeastLoss(problems)
    except TooManyCounts:
        return NoPlan("would need too much memory to be worked out")
    found = dict.fromkeys(layers for problem in problems for layers in least.partitions(problem))
    if not found:
        return NoPlan("fits no partition in hostfile order")
    return fastest(best_sized(request, list(zip(devices, layers, strict=True))) for layers in found)


class LeastLoss:
    """The least Σω of every interval of layers on every stage of `problems`, which are of one request, with one choice
    for embedding and head."""

    def __init__(self, problems: Sequence[PlanningProblem]) -> None:
        """Raises `TooManyCounts` for a model with so many layers that the tables would not fit memory."""
        self.omega = np.array([list(row.values()) for row in problems[0].omega])
        self.choices = tuple(problems[0].omega[0])
        stages = {self._key(stage): stage for problem in problems for stage in problem.stages}
        self.table = LeastOmega(
            self.omega,
            len(self.omega),
            lambda rows: np.any([fitting(rows, self.choices, stage) for stage in stages.values()], axis=0),
        )
        self.loss = {key: self._losses(stage) for key, stage in stages.items()}

    def partitions(self, problem: PlanningProblem) -> list[LayerChoices]:
        """That of least loss, the even one and the one by memory, each with its bits of least loss, where they fit."""
        num_layers, num_stages = problem.num_layers, len(problem.stages)
        memory_bytes = [stage.device.memory_bytes for stage in problem.stages]
        given = even_counts(num_layers, num_stages), proportional_counts(num_layers, memory_bytes)
        found: dict[LayerChoices, None] = {}
        for lengths in (*given, self._least_partition(problem)):
            starts = itertools.accumulate(lengths, initial=0)
            intervals = list(zip(problem.stages, starts, lengths, strict=False))
            losses = [self.loss[self._key(stage)][start, length] for stage, start, length in intervals]
            if lengths and math.isfinite(sum(losses)):
                counts = [self._counts(*interval) for interval in intervals]
                found[least_omega_layers(problem.omega, counts)] = None
        return list(found)

    def _least_partition(self, problem: PlanningProblem) -> list[int]:
        """Layers per stage; empty where nothing fits. `best[i]`: the first i layers on the stages so far."""
        num_layers = problem.num_layers
        best, froms = np.full(num_layers + 1, np.inf), []
        best[0] = 0.0
        for stage in problem.stages:
            loss = self.loss[self._key(stage)]
            totals = np.full((num_layers + 1, num_layers + 1), np.inf)  # [from, to]
            for start in range(num_layers):
                totals[start, start + 1 :] = best[start] + loss[start, 1 : num_layers - start + 1]
            froms.append(totals.argmin(axis=0))
            best = totals.min(axis=0)
        if not math.isfinite(best[num_layers]):
            return []
        bounds = [num_layers]
        for origin in reversed(froms):
            bounds.append(int(origin[bounds[-1]]))
        return [stop - start for stop, start in itertools.pairwise(bounds)][::-1]

    def _losses(self, stage: StageTerms) -> Floats:
        """[start, length]"""
        losses = np.full((len(self.omega) + 1, len(self.omega) + 1), np.inf)
        for length, rows in self.table.counts.items():
            fits, omega = fitting(rows, self.choices, stage), self.table.omega[length]
            assert omega is not None
            if fits.any():
                losses[: len(omega), length] = omega[:, fits].min(axis=1)
        return losses

    def _counts(self, stage: StageTerms, start: int, length: int) -> Mapping[Choice, int]:
        rows, omega = self.table.counts[length], self.table.omega[length]
        assert omega is not None
        best = np.where(fitting(rows, self.choices, stage), omega[start], np.inf).argmin()
        return dict(zip(self.choices, rows[best].tolist(), strict=True))

    def _key(self, stage: StageTerms) -> object:
        ends_bytes = tuple(ends.num_bytes for ends in stage.ends)
        return stage.room_bytes, stage.dequantise_bytes, tuple(stage.layer_bytes.items()), ends_bytes

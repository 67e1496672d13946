"""LLM-PQ's heuristic: from adabits on, move layers and bits from the slowest stage to faster ones while time falls.

The authors change one straggler with one pioneer at a time: the pioneer takes layers at the straggler's bits and gives
up bits of its own for them; the fastest pioneer that helps is taken. Here every layer, every receiver and every pair
of bits is tried in each step and the best is taken, under Ω in place of their weight θ. Orders, sizes and the count of
seconds are theirs (`llm_pq.py`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from hetero_infer.planner.baselines.adabits import LeastLoss
from hetero_infer.planner.baselines.draft import draft, estimated, obstacle
from hetero_infer.planner.baselines.llm_pq import candidates, their_seconds
from hetero_infer.planner.exact.least_omega import TooManyCounts
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.problem import QUALITY_TOLERANCE, LayerChoices, PlanningProblem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import count_choices
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

FASTER = 1 - 1e-9  # a smaller gain is rounding


def llm_pq_heuristic(request: PlanRequest) -> Plan | NoPlan:
    """The plan with fewest of the authors' seconds over their orders and sizes."""
    problems = candidates(request)
    if not problems:
        return NoPlan("fits no order of the types")
    try:
        least = LeastLoss(problems)
    except TooManyCounts:
        return NoPlan("starts from adabits, which would need too much memory to be worked out")
    starts = [_State(problem, layers) for problem in problems for layers in least.partitions(problem)]
    ends = [_descend(state) for state in starts if state.is_allowed]
    if not ends:
        return NoPlan("adabits fits no order of the types within the quality limit")
    best = min(ends, key=lambda state: state.seconds)
    problem = best.problem
    stages = list(zip((stage.device for stage in problem.stages), best.layers, strict=True))
    plan = draft(request, stages, *(problem.micro_batch_size[phase] for phase in Phase))
    assert obstacle(request, plan) is None, "a move broke a limit"
    return estimated(request, plan)


@dataclass(frozen=True)
class _State:
    """`layers[stage]` are the choices of its decoder layers."""

    problem: PlanningProblem
    layers: LayerChoices

    @cached_property
    def seconds(self) -> float:
        return their_seconds(self.problem, self.layers)

    @property
    def is_allowed(self) -> bool:
        problem = self.problem
        limit = problem.omega_limit + QUALITY_TOLERANCE * problem.omega_scale
        return problem.total_omega(self.layers, [stage.ends[0] for stage in problem.stages]) <= limit and all(
            set(layers) <= set(stage.choices)
            and stage.used_bytes(count_choices(layers), stage.ends[0]) <= stage.device.memory_bytes
            for stage, layers in zip(problem.stages, self.layers, strict=True)
        )

    def slowest_first(self) -> list[int]:
        """Stages by what they add to the time where they are the slowest."""

        def adds_s(j: int) -> float:
            stage, counts = self.problem.stages[j], count_choices(self.layers[j])
            slowest = self.problem.objective.slowest
            return sum(slowest[phase] * stage.compute_s(phase, counts, stage.ends[0]) for phase in Phase)

        return sorted(range(len(self.layers)), key=adds_s, reverse=True)

    def with_layer_moved(self, source: int, target: int) -> "_State":
        """The stages between them hand a layer on; every layer keeps its choice."""
        flat = tuple(itertools.chain.from_iterable(self.layers))
        counts = [len(stage) - (j == source) + (j == target) for j, stage in enumerate(self.layers)]
        bounds = itertools.pairwise((0, *itertools.accumulate(counts)))
        return replace(self, layers=tuple(flat[start:stop] for start, stop in bounds))

    def with_other_bits(self, stage: int) -> Iterator["_State"]:
        """For every two choices, the layer of the stage that loses least by going from the one to the other."""
        first = sum(map(len, self.layers[:stage]))
        layers, omega = self.layers[stage], self.problem.omega
        for old, new in itertools.product(dict.fromkeys(layers), self.problem.stages[stage].choices):
            if old != new:
                of_old = [i for i, choice in enumerate(layers) if choice == old]
                layer = min(of_old, key=lambda i: omega[first + i][new] - omega[first + i][old])
                yield self._with(stage, (*layers[:layer], new, *layers[layer + 1 :]))

    def _with(self, stage: int, layers: tuple[Choice, ...]) -> "_State":
        return replace(self, layers=(*self.layers[:stage], layers, *self.layers[stage + 1 :]))


def _descend(state: _State) -> _State:
    while True:
        faster = [other for other in _neighbours(state) if other.seconds < state.seconds * FASTER and other.is_allowed]
        if not faster:
            return state
        state = min(faster, key=lambda other: other.seconds)


def _neighbours(state: _State) -> Iterator[_State]:
    """The slowest stage gives a layer to another, or takes other bits for one; the other may change one of its bits."""
    slowest, *others = state.slowest_first()
    if len(state.layers[slowest]) > 1:
        for other in others:
            moved = state.with_layer_moved(slowest, other)
            yield from (moved, *moved.with_other_bits(other))
    for changed in state.with_other_bits(slowest):
        yield changed
        if others:
            yield from changed.with_other_bits(others[-1])

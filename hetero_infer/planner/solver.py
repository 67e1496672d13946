"""HiGHS's answer to one `PlanningProblem`, as an integral plan.

An optimum, an incumbent at the time limit, no incumbent at the time limit, and infeasible are four different answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.solver.common.results import TerminationCondition
from pyomo.contrib.solver.solvers.highs import Highs
from scipy.optimize import linear_sum_assignment

from hetero_infer.planner.formulation import count_formulation
from hetero_infer.planner.problem import QUALITY_TOLERANCE, Counts, Ends, LayerChoices, PlanningProblem
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import HeteroInferError

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Solution:
    """`layers[stage]` are the choices of its decoder layers, `ends[stage]` its embedding and head. `objective_s` is
    recomputed from them.

    `bound_s` is certified: no plan of this problem is faster. `is_optimal`: within the gap that was asked for.
    """

    layers: LayerChoices
    ends: tuple[Ends, ...]
    objective_s: float
    bound_s: float
    omega: float
    is_optimal: bool


@dataclass(frozen=True)
class Infeasible:
    """Proven: no plan (or, with a cutoff, no faster one)."""


@dataclass(frozen=True)
class Undecided:
    """The time limit came before any plan or proof; no plan is faster than `bound_s`."""

    bound_s: float


def solve(
    problem: PlanningProblem, *, time_limit_s: float, gap: float, cutoff_s: float = math.inf
) -> Solution | Infeasible | Undecided:
    """The fastest plan; none slower than `cutoff_s`."""
    if not all(stage.holds_a_layer for stage in problem.stages):
        return Infeasible()
    scale_s = problem.typical_s
    model = count_formulation(problem, scale_s)
    if math.isfinite(cutoff_s):
        model.cutoff = pyo.Constraint(expr=model.total <= cutoff_s / scale_s)
    results = Highs().solve(
        model,
        time_limit=time_limit_s,
        rel_gap=gap,
        abs_gap=0.0,
        threads=1,
        solver_options={"mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE},
        raise_exception_on_nonoptimal_result=False,
        load_solutions=False,
    )
    condition = results.termination_condition
    if condition in (TerminationCondition.provenInfeasible, TerminationCondition.infeasibleOrUnbounded):
        return Infeasible()
    is_optimal = condition is TerminationCondition.convergenceCriteriaSatisfied
    if not is_optimal and condition is not TerminationCondition.maxTimeLimit:
        raise HeteroInferError(f"HiGHS ended with {condition.name}; its log:\n{results.solver_log}")
    bound_s = max(0.0, (results.objective_bound or 0.0) * scale_s)
    if results.incumbent_objective is None:
        return Undecided(bound_s)
    results.solution_loader.load_vars()
    layers, ends = _read_off(problem, model)
    objective_s = problem.closed_form_s([count_choices(stage) for stage in layers], ends)
    return Solution(layers, ends, objective_s, min(bound_s, objective_s), problem.total_omega(layers, ends), is_optimal)


def highs_version() -> str:
    return ".".join(map(str, Highs().version()))


def count_choices(layers: Sequence[Choice]) -> dict[Choice, int]:
    return {choice: layers.count(choice) for choice in set(layers)}


def least_omega_layers(omega: Sequence[Counts], counts: Sequence[Mapping[Choice, int]]) -> LayerChoices:
    """Per stage, the assignment of so many layers at each choice that loses least."""
    layers = []
    first = 0
    for of_stage in counts:
        pool = [choice for choice, count in of_stage.items() for _ in range(count)]
        rows = omega[first : first + len(pool)]
        _, columns = linear_sum_assignment(np.array([[row[choice] for choice in pool] for row in rows]))
        layers.append(tuple(pool[column] for column in columns))
        first += len(pool)
    return tuple(layers)


def _read_off(problem: PlanningProblem, model: Any) -> tuple[LayerChoices, tuple[Ends, ...]]:
    """An integral plan from the counts."""
    counts = [
        {choice: round(model.n[j, b].value) for b, choice in enumerate(stage.choices)}
        for j, stage in enumerate(problem.stages)
    ]
    layers = least_omega_layers(problem.omega, counts)
    ends = tuple(
        next(way for e, way in enumerate(stage.ends) if model.e[j, e].value > 0.5)
        for j, stage in enumerate(problem.stages)
    )
    for j, (stage, count, way) in enumerate(zip(problem.stages, counts, ends, strict=True)):
        assert stage.used_bytes(count, way) <= stage.device.memory_bytes, f"HiGHS overfilled stage {j}"
    loss = problem.total_omega(layers, ends)
    assert loss <= problem.omega_limit + QUALITY_TOLERANCE * problem.omega_scale, "HiGHS passed Ω"
    return layers, ends

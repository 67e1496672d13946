"""HiGHS's answer to one `PlanningProblem`, as an integral plan.

An optimum, an incumbent at the time limit, no incumbent at the time limit, and infeasible are four different answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.solver.common.results import TerminationCondition
from pyomo.contrib.solver.solvers.highs import Highs
from scipy.optimize import linear_sum_assignment

from hetero_infer.planner.formulation import count_formulation
from hetero_infer.planner.problem import QUALITY_TOLERANCE, LayerChoices, PlanningProblem
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.errors import HeteroInferError

TOLERANCE = 1e-9
SAME_SPEED = 1e-9  # plans whose seconds differ by less than this share count as equally fast


@dataclass(frozen=True)
class Solution:
    """`layers[stage]` are the choices of its decoder layers. `objective_s` is recomputed from them.

    `bound_s` is certified: no plan of this problem is faster. `is_optimal`: within the gap that was asked for.
    """

    layers: LayerChoices
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


Goal = Literal["seconds", "omega"]


def solve(
    problem: PlanningProblem, *, time_limit_s: float, gap: float, cutoff_s: float = math.inf, goal: Goal = "seconds"
) -> Solution | Infeasible | Undecided:
    """The fastest plan, or with `goal="omega"` the one with least Σω; none slower than `cutoff_s`.

    With the goal "omega" `bound_s` is the trivial 0.
    """
    if not all(stage.holds_a_layer for stage in problem.stages):
        return Infeasible()
    scale_s = problem.typical_s
    model = count_formulation(problem, scale_s)
    if math.isfinite(cutoff_s):
        model.cutoff = pyo.Constraint(expr=model.total <= cutoff_s / scale_s)
    if goal == "omega":
        model.least_seconds.deactivate()
        model.least_loss.activate()
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
    bound_s = 0.0 if goal == "omega" else max(0.0, (results.objective_bound or 0.0) * scale_s)
    if results.incumbent_objective is None:
        return Undecided(bound_s)
    results.solution_loader.load_vars()
    layers = _read_off(problem, model)
    objective_s = problem.closed_form_s([count_choices(stage) for stage in layers])
    return Solution(layers, objective_s, min(bound_s, objective_s), problem.total_omega(layers), is_optimal)


def refine(problem: PlanningProblem, solution: Solution, *, time_limit_s: float) -> Solution:
    """Among the plans as fast as `solution`, one with least Σω; `solution` itself where none is found in time.

    What is certified about speed stays as it was: the bound does not change.
    """
    slowest_s = solution.objective_s * (1 + SAME_SPEED)
    outcome = solve(problem, time_limit_s=time_limit_s, gap=1e-6, cutoff_s=slowest_s, goal="omega")
    if isinstance(outcome, Solution) and outcome.omega < solution.omega and outcome.objective_s <= slowest_s:
        return Solution(outcome.layers, outcome.objective_s, solution.bound_s, outcome.omega, solution.is_optimal)
    return solution


def highs_version() -> str:
    return ".".join(map(str, Highs().version()))


def count_choices(layers: Sequence[Choice]) -> dict[Choice, int]:
    return {choice: layers.count(choice) for choice in set(layers)}


def _read_off(problem: PlanningProblem, model: Any) -> LayerChoices:
    """An integral plan from the counts: per stage, the least-ω assignment of its choices to its layers."""
    layers = []
    first = 0
    for j, stage in enumerate(problem.stages):
        pool = [choice for b, choice in enumerate(stage.choices) for _ in range(round(model.n[j, b].value))]
        rows = problem.omega[first : first + len(pool)]
        _, columns = linear_sum_assignment(np.array([[row[choice] for choice in pool] for row in rows]))
        layers.append(tuple(pool[column] for column in columns))
        first += len(pool)
        assert stage.used_bytes(count_choices(pool)) <= stage.device.memory_bytes, f"HiGHS overfilled stage {j}"
    plan = tuple(layers)
    assert problem.total_omega(plan) <= problem.omega_limit + QUALITY_TOLERANCE * problem.omega_scale, "HiGHS passed Ω"
    return plan

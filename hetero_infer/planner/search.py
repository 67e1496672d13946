"""The best plan over every pair of micro-batch sizes (η, ξ), with a bound that holds for all of them."""

import math
import time
from dataclasses import dataclass, replace

from hetero_infer.planner.diagnosis import why_infeasible
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.fluid import fluid_bound_s
from hetero_infer.planner.problem import PlanningProblem, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import Infeasible, Solution, Undecided, highs_version, refine, solve
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.errors import HeteroInferError, InfeasibleError, InputError
from hetero_infer.spec.plan import Plan, QualityPlan, SolverReport, StagePlan
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class Best:
    """The best solution found, the problem it solves, and `bound_s`: no plan of any pair is faster.

    `is_optimal`: every pair was solved to the gap that was asked for, or ruled out.
    """

    problem: PlanningProblem
    solution: Solution
    bound_s: float
    is_optimal: bool

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.bound_s / self.solution.objective_s)


def find_plan(request: PlanRequest, *, time_limit_s: float, gap: float) -> Plan:
    """The fastest plan to the relative `gap`; among plans as fast as it, one that loses least quality.

    At the time limit it is the best plan found, with the gap that was really proven. Raises `InfeasibleError` when
    there is provably no plan, `HeteroInferError` when time ran out before one was found.
    """
    devices, layers = len(request.cluster.devices), request.model.num_hidden_layers
    if devices > layers:
        raise InputError(
            f"{devices} devices for {layers} decoder layers: each needs one, leave {devices - layers} devices out"
        )
    started_s = time.monotonic()
    deadline_s = started_s + time_limit_s
    best = search(request, deadline_s=deadline_s, gap=gap)
    left_s = deadline_s - time.monotonic()
    if left_s > 0:
        best = replace(best, solution=refine(best.problem, best.solution, time_limit_s=left_s))
    report = SolverReport(
        name=f"pyomo+highs {highs_version()}",
        status="optimal" if best.is_optimal else "time limit",
        objective=best.solution.objective_s,
        bound=best.bound_s,
        gap=best.gap,
        seconds=time.monotonic() - started_s,
    )
    return _plan(request, best, report)


def search(request: PlanRequest, *, deadline_s: float, gap: float) -> Best:
    """Solve the pairs in the order of their fluid bounds, until the next bound is no better than what is found.

    `deadline_s` is on the monotonic clock. A pair that time did not reach counts with its fluid bound.
    """
    sizes = request.workload.micro_batch_sizes
    problems = [build_problem(request, prefill_size, decode_size) for prefill_size in sizes for decode_size in sizes]
    candidates = sorted(((fluid_bound_s(problem), problem) for problem in problems), key=lambda candidate: candidate[0])
    best: tuple[PlanningProblem, Solution] | None = None
    bounds_s: list[float] = []
    is_optimal = True
    for fluid_s, problem in candidates:
        best_s = best[1].objective_s if best else math.inf
        if fluid_s >= best_s:
            break
        left_s = deadline_s - time.monotonic()
        outcome = solve(problem, time_limit_s=left_s, gap=gap, cutoff_s=best_s) if left_s > 0 else Undecided(fluid_s)
        match outcome:
            case Infeasible():
                bounds_s.append(best_s)
            case Undecided():
                bounds_s.append(max(fluid_s, outcome.bound_s))
                is_optimal = False
            case Solution():
                bounds_s.append(max(fluid_s, outcome.bound_s))
                is_optimal &= outcome.is_optimal
                if outcome.objective_s < best_s:
                    best = problem, outcome
    if best:
        problem, solution = best
        return Best(problem, solution, min(*bounds_s, solution.objective_s), is_optimal)
    if math.isfinite(min(bounds_s, default=math.inf)):
        raise HeteroInferError(
            "the planner's time limit came before it found a plan or proved that there is none; raise [planner] "
            "time_limit_s"
        )
    raise InfeasibleError(why_infeasible(request, time_limit_s=max(1.0, deadline_s - time.monotonic())))


def _plan(request: PlanRequest, best: Best, report: SolverReport) -> Plan:
    last = len(best.problem.stages) - 1
    plan = Plan(
        model=request.model_facts,
        devices=request.cluster.devices,
        workload=request.workload,
        stages=tuple(
            StagePlan(
                stage.device.name, (UNQUANTISED,) * (j == 0) + best.solution.layers[j] + (UNQUANTISED,) * (j == last)
            )
            for j, stage in enumerate(best.problem.stages)
        ),
        prefill_micro_batch_size=best.problem.micro_batch_size[Phase.PREFILL],
        decode_micro_batch_size=best.problem.micro_batch_size[Phase.DECODE],
        quality=QualityPlan(
            max_perplexity_increase=request.max_perplexity_increase,
            limit=request.omega_limit,
            predicted=best.solution.omega,
            unit=request.sensitivity.unit,
        ),
        solver=report,
    )
    return replace(plan, estimate=estimate_plan(plan, request.model, request.cluster, request.latency))

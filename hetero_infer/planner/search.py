"""`find_plan`: the best plan over device orders, subsets, layers, choices and micro-batch sizes, and how sure that is.

`BranchAndBound` finds it with a bound over everything. HiGHS then proves, from the Pyomo model of the winner's order
and sizes, that these hold nothing better.
"""

import time
from collections.abc import Collection
from dataclasses import replace

from hetero_infer.planner.diagnosis import why_infeasible
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.exact.branch_and_bound import BranchAndBound, Found
from hetero_infer.planner.exact.search_space import SearchSpace
from hetero_infer.planner.exact.space import Pipeline
from hetero_infer.planner.problem import PlanningProblem, build_problem
from hetero_infer.planner.rank import rank
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import (
    Infeasible,
    Solution,
    Undecided,
    count_choices,
    highs_version,
    least_omega_layers,
    solve,
)
from hetero_infer.spec.errors import HeteroInferError, InfeasibleError
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import Plan, QualityPlan, SolverReport, StagePlan
from hetero_infer.spec.workload import Phase

SEARCH_SHARE = 0.7  # of the time limit; HiGHS has what is left
SEARCH_GAP = 0.5  # of the gap asked for: the rest is room for the judge's choice
MOST_JUDGED = 8
LEAST_GAP = 1e-7  # of a cutoff: HiGHS keeps its constraints to 1e-9


def find_plan(request: PlanRequest, *, time_limit_s: float, gap: float, must_use: Collection[str] = ()) -> Plan:
    """The fastest plan to the relative `gap`; of those that use the devices `must_use`, or others just like them.

    At the time limit it is the best plan found, with the gap that was really proven. Raises `InfeasibleError` when
    there is provably no plan, `HeteroInferError` when time ran out before one was found.
    """
    started_s = time.monotonic()
    search_space = SearchSpace(request, must_use)
    found = BranchAndBound(search_space, SEARCH_GAP * gap).run(started_s + SEARCH_SHARE * time_limit_s)
    if found.pipeline is None:
        if found.is_finished and search_space.is_restricted:
            raise HeteroInferError(
                f"no plan with at most {search_space.most_mixed} different choices in a stage, and all mixes of "
                f"{len(request.choices)} choices would not fit this machine's memory; take fewer [quality] choices"
            )
        if found.is_finished:
            raise InfeasibleError(why_infeasible(request, time_limit_s=max(1.0, 0.3 * time_limit_s)))
        raise HeteroInferError(
            "the planner's time limit came before it found a plan or proved that there is none; raise [planner] "
            "time_limit_s"
        )
    problem, solution, judgement = judged(search_space, found, gap)
    left_s = max(0.1, started_s + time_limit_s - time.monotonic())
    solution, order_bound_s = certify(problem, solution, time_limit_s=left_s, gap=gap)
    bound_s = min(found.bound_s, solution.objective_s)
    proven_gap = max(0.0, 1 - bound_s / solution.objective_s)
    is_theirs = request.objective is Objective.LLM_PQ
    report = SolverReport(
        name=f"pyomo+highs {highs_version()}" + ", seconds as LLM-PQ's code counts them" * is_theirs,
        status="optimal" if proven_gap <= max(gap, LEAST_GAP) else "time limit",
        objective=solution.objective_s,
        bound=bound_s,
        gap=proven_gap,
        seconds=time.monotonic() - started_s,
        order_bound=order_bound_s,
        searched=f"{found.effort}; {judgement}",
    )
    return replace(plan_of(request, problem, solution), solver=report)


Candidate = tuple[PlanningProblem, Solution]


def judged(search_space: SearchSpace, found: Found, gap: float) -> tuple[PlanningProblem, Solution, str]:
    """Of the pipelines within the gap the one that the judge puts first, and what that changed.

    The judge knows batches; other objectives keep the best.
    """
    assert found.pipeline
    if search_space.request.objective is not Objective.RING:
        return *with_devices(search_space, found.sizes, found.pipeline), "not judged: another objective"
    candidates = [with_devices(search_space, *one) for one in found.within(gap)[:MOST_JUDGED]]
    plans = [plan_of(search_space.request, *candidate) for candidate in candidates]
    ranking = rank(plans, gap)
    return *candidates[plans.index(ranking.best)], str(ranking)


def with_devices(search_space: SearchSpace, sizes: tuple[int, int], pipeline: Pipeline) -> Candidate:
    """A pipeline on devices of its classes: the problem of its order and sizes, and its solution."""
    problem = build_problem(search_space.request, *sizes, search_space.devices_of(pipeline))
    counts = [dict(zip(search_space.choices, pick.counts, strict=True)) for pick in pipeline.picks]
    layers = least_omega_layers(problem, counts)
    ends = tuple(
        next(way for way in stage.ends if (way.embedding, way.head) == (pick.ends.embedding, pick.ends.head))
        for stage, pick in zip(problem.stages, pipeline.picks, strict=True)
    )
    objective_s = problem.closed_form_s([count_choices(stage) for stage in layers], ends)
    return problem, Solution(layers, ends, objective_s, 0.0, problem.total_omega(layers, ends), is_optimal=False)


def certify(problem: PlanningProblem, solution: Solution, *, time_limit_s: float, gap: float) -> tuple[Solution, float]:
    """HiGHS's word on the order and sizes of a solution: a better one, or the same, and its bound in seconds."""
    cutoff_s = solution.objective_s * (1 - max(gap, LEAST_GAP))
    match outcome := solve(problem, time_limit_s=time_limit_s, gap=gap, cutoff_s=cutoff_s):
        case Infeasible():
            return solution, cutoff_s
        case Undecided():
            return solution, min(outcome.bound_s, cutoff_s)
        case Solution():
            return (outcome if outcome.objective_s < solution.objective_s else solution), outcome.bound_s


def plan_of(request: PlanRequest, problem: PlanningProblem, solution: Solution) -> Plan:
    """With its estimate, and without a solver's word."""
    plan = Plan(
        model=request.model_facts,
        devices=request.cluster.devices,
        workload=request.workload,
        stages=tuple(
            StagePlan(
                stage.device.name,
                (*filter(None, [ends.embedding]), *layers, *filter(None, [ends.head])),
            )
            for stage, layers, ends in zip(problem.stages, solution.layers, solution.ends, strict=True)
        ),
        prefill_micro_batch_size=problem.micro_batch_size[Phase.PREFILL],
        decode_micro_batch_size=problem.micro_batch_size[Phase.DECODE],
        quality=QualityPlan(
            max_perplexity_increase=request.max_perplexity_increase,
            limit=request.omega_limit,
            predicted=solution.omega,
            unit=request.sensitivity.unit,
        ),
    )
    return replace(plan, estimate=estimate_plan(plan, request.model, request.cluster, request.latency))

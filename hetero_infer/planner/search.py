"""`find_plan`: the best plan over device orders, subsets, layers, choices and micro-batch sizes, and how sure that is.

`BranchAndBound` finds it with a bound over everything. HiGHS then proves, from the Pyomo model of the winner's order
and sizes, that these hold nothing better.
"""

import time
from collections.abc import Collection
from dataclasses import replace

from hetero_infer.planner.descent import descend
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
JUDGED_GAPS = 100  # above the best, the closed form is no reason yet to leave a plan out; with gap = 0 it is
MOST_APART = 0.1  # closed form and recurrence, of most plans
MOST_JUDGED = 8  # of the plans within the gap, and of those of other pairs of sizes three times as many
MOST_DESCENTS, DESCENT_SHARE = 3, 0.3  # of the time that the search took
LEAST_GAP = 1e-7  # of a cutoff: HiGHS keeps its constraints to 1e-9


def find_plan(request: PlanRequest, *, time_limit_s: float, gap: float, must_use: Collection[str] = ()) -> Plan:
    """The fastest plan by the recurrence, of those with the least closed form, which is known to the relative `gap`.

    Only plans that use the devices `must_use`, or others just like them, count. `plan.solver` is about the closed form.
    At the time limit it is the best plan found, with the gap that was really proven. Raises `InfeasibleError` when
    there is provably no plan, `HeteroInferError` when time ran out before one was found.
    """
    started_s = time.monotonic()
    search_space = SearchSpace(request, must_use)
    window = min(JUDGED_GAPS * gap, MOST_APART)
    found = BranchAndBound(search_space, SEARCH_GAP * gap, window).run(started_s + SEARCH_SHARE * time_limit_s)
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
    plan, least_s, judgement = judged(search_space, found, gap, window)
    left_s = max(0.1, started_s + time_limit_s - time.monotonic())
    problem = build_problem(
        request,
        plan.prefill_micro_batch_size,
        plan.decode_micro_batch_size,
        [plan.device_of(stage) for stage in range(len(plan.stages))],
    )
    better, order_bound_s = certify(problem, least_s, time_limit_s=left_s, gap=gap)
    if order_bound_s < least_s * (1 - max(gap, LEAST_GAP)) * (1 - 1e-12):
        judgement += "; HiGHS's time was over before it had certified this order"
    if better:
        plan, least_s = plan_of(request, problem, better), better.objective_s
    bound_s = min(found.bound_s, least_s)
    proven_gap = max(0.0, 1 - bound_s / least_s)
    is_theirs = request.objective is Objective.LLM_PQ
    report = SolverReport(
        name=f"pyomo+highs {highs_version()}" + ", seconds as LLM-PQ's code counts them" * is_theirs,
        status=_status(proven_gap <= max(gap, LEAST_GAP), found),
        objective=least_s,
        bound=float(bound_s),
        gap=float(proven_gap),
        seconds=time.monotonic() - started_s,
        order_bound=order_bound_s,
        searched=f"{found.effort}; {judgement}",
    )
    return replace(plan, solver=report)


def _status(is_proven: bool, found: Found) -> str:
    """A search that is finished may have left more than the gap: where hosts or mixes of choices are not told apart."""
    return "optimal" if is_proven else "bound is loose" if found.is_finished else "time limit"


def judged(search_space: SearchSpace, found: Found, gap: float, window: float) -> tuple[Plan, float, str]:
    """The plan that the judge puts first, the least closed form of all before him, and what he changed.

    Before him are those within the gap, and the best ones met of other pairs of sizes whose closed form is at most
    `window` above the least; of these he betters the first few himself. He knows batches; other objectives keep the
    best.
    """
    assert found.pipeline
    request = search_space.request
    if request.objective is not Objective.RING:
        problem, solution = with_devices(search_space, found.sizes, found.pipeline)
        return plan_of(request, problem, solution), solution.objective_s, "not judged: another objective"
    near = found.within(gap)[:MOST_JUDGED] + found.of_other_pairs(window)[: 3 * MOST_JUDGED]
    candidates = [with_devices(search_space, *one) for one in near]
    plans = [plan_of(request, *candidate) for candidate in candidates]
    if window:
        deadline_s = time.monotonic() + DESCENT_SHARE * found.seconds_spent
        first = rank(plans, max(window, gap)).plans[:MOST_DESCENTS]
        plans += [better for plan in first if (better := descend(request, plan, deadline_s)) is not plan]
    ranking = rank(plans, max(window, gap))
    least_s = min(plan.estimate.closed_form_s for plan in plans if plan.estimate)
    return ranking.best, least_s, str(ranking)


def with_devices(
    search_space: SearchSpace, sizes: tuple[int, int], pipeline: Pipeline
) -> tuple[PlanningProblem, Solution]:
    """A pipeline on devices of its classes: the problem of its order and sizes, and its solution."""
    problem = build_problem(search_space.request, *sizes, search_space.devices_of(pipeline))
    counts = [dict(zip(search_space.choices, pick.counts, strict=True)) for pick in pipeline.picks]
    layers = least_omega_layers(problem.omega, counts)
    ends = tuple(
        next(way for way in stage.ends if (way.embedding, way.head) == (pick.ends.embedding, pick.ends.head))
        for stage, pick in zip(problem.stages, pipeline.picks, strict=True)
    )
    objective_s = problem.closed_form_s([count_choices(stage) for stage in layers], ends)
    return problem, Solution(layers, ends, objective_s, 0.0, problem.total_omega(layers, ends), is_optimal=False)


def certify(
    problem: PlanningProblem, least_s: float, *, time_limit_s: float, gap: float
) -> tuple[Solution | None, float]:
    """HiGHS's word on an order and sizes: what in them is faster than `least_s` by more than the gap, if anything; and
    its bound in seconds."""
    cutoff_s = least_s * (1 - max(gap, LEAST_GAP))
    match outcome := solve(problem, time_limit_s=time_limit_s, gap=gap, cutoff_s=cutoff_s):
        case Infeasible():
            return None, cutoff_s
        case Undecided():
            return None, min(outcome.bound_s, cutoff_s)
        case Solution():
            return (outcome if outcome.objective_s < least_s else None), outcome.bound_s


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

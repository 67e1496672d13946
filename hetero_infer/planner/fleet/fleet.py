"""`plan_fleet`: a cluster cut into replicas, each with a plan of its own, and how far they are from the best.

In: a `PlanRequest` whose batch is the fleet's, and whose quality limit every replica keeps. Out: a `Fleet` of plans.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.fleet.bound import FleetBound
from hetero_infer.planner.fleet.pipelines import Pipeline
from hetero_infer.planner.fleet.polish import least_s, polished
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.search import FleetSearch
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.planner.solver import highs_version
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import HeteroInferError, InputError
from hetero_infer.spec.fleet import Fleet
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import Plan, QualityPlan, SolverReport, StagePlan

SEARCH_SHARE, POLISH_SHARE = 0.25, 0.2  # of the time at most; the rest is for the bound
ONE_PIPELINE_SHARE = 0.5  # of the time, where one and several are compared


def plan_fleet(request: PlanRequest, *, time_limit_s: float, gap: float, replicas: int | None = None) -> Fleet:
    """The fastest fleet found: of `replicas` pipelines, or of as many as are best.

    The bound holds for any number of replicas; it is improved until it is within `gap` or time is over. Raises
    `HeteroInferError` where no fleet is found.
    """
    _refuse_what_is_not_counted(request)
    started_s = time.monotonic()
    rates = Rates.of(request)
    search = FleetSearch(rates, replicas, started_s + SEARCH_SHARE * time_limit_s)
    found = search.best()
    if not found:
        raise HeteroInferError(
            "the fleet planner found no replicas that hold the model, the batch and the quality limit; raise [planner] "
            "time_limit_s, lower batch_size or allow fewer bits"
        )
    drafts = [_plan(request, pipeline, devices) for pipeline, devices in _placed(rates, found)]
    plans = polished(request, drafts, deadline_s=time.monotonic() + POLISH_SHARE * time_limit_s)
    slowest_s = max(map(least_s, plans))
    bound_s = FleetBound(rates).seconds(slowest_s, deadline_s=started_s + time_limit_s, gap=gap)
    proven_gap = max(0.0, 1 - bound_s / slowest_s)
    report = SolverReport(
        name=f"fleet, pyomo+highs {highs_version()}",
        status="optimal" if proven_gap <= gap else "time limit",
        objective=slowest_s,
        bound=bound_s,
        gap=proven_gap,
        seconds=time.monotonic() - started_s,
        searched=f"{search.effort}; {sum(plan.solver is not None for plan in plans)} of {len(plans)} replicas are "
        "from the exact search",
    )
    if len(plans) == 1:
        plans = [replace(plans[0], solver=report)]
    return Fleet.over(request.cluster.devices, plans, report)


def plan_one_or_several(request: PlanRequest, *, time_limit_s: float, gap: float) -> Fleet:
    """One pipeline or the fastest fleet, whichever the recurrence finds faster; time is shared between them."""
    _refuse_what_is_not_counted(request)
    started_s = time.monotonic()
    fleets, errors = [], []
    try:
        fleets.append(Fleet((find_plan(request, time_limit_s=ONE_PIPELINE_SHARE * time_limit_s, gap=gap),)))
    except HeteroInferError as error:
        errors.append(error)
    try:
        left_s = started_s + time_limit_s - time.monotonic()
        fleets.append(plan_fleet(request, time_limit_s=left_s, gap=gap))
    except HeteroInferError as error:
        errors.append(error)
    if not fleets:
        raise errors[0]  # it says what one pipeline lacks
    return min(fleets, key=_total_s)


def _total_s(fleet: Fleet) -> float:
    return max(plan.estimate.total_s for plan in fleet.replicas if plan.estimate)


def _refuse_what_is_not_counted(request: PlanRequest) -> None:
    if request.objective is not Objective.RING:
        raise InputError(
            f"objective = {request.objective}: replicas are planned for the seconds of a batch ('ring'); set [planner] "
            "replicas = 1 for another objective"
        )
    if (request.embedding_choices, request.head_choices) != ((UNQUANTISED,), (UNQUANTISED,)):
        raise InputError(
            "replicas are planned with embedding and head at 16 bits; leave [quality] embedding and head out, or set "
            "[planner] replicas = 1"
        )


def _placed(rates: Rates, pipelines: Sequence[Pipeline]) -> Iterator[tuple[Pipeline, list[Device]]]:
    """On real devices: alike ones are taken in the order of the hostfile."""
    free = [iter(devices) for devices in rates.kinds]
    for pipeline in pipelines:
        yield pipeline, [next(free[stage.kind]) for stage in pipeline.stages]


def _plan(request: PlanRequest, pipeline: Pipeline, devices: Sequence[Device]) -> Plan:
    last = len(devices) - 1
    choices = [[request.choices[choice] for choice in stage.choices] for stage in pipeline.stages]
    flat = [choice for stage in choices for choice in stage]
    plan = Plan(
        model=request.model_facts,
        devices=tuple(device for device in request.cluster.devices if device in devices),
        workload=replace(request.workload, batch_size=pipeline.share),
        stages=tuple(
            StagePlan(device.name, (UNQUANTISED,) * (j == 0) + tuple(choices[j]) + (UNQUANTISED,) * (j == last))
            for j, device in enumerate(devices)
        ),
        prefill_micro_batch_size=pipeline.sizes[0],
        decode_micro_batch_size=pipeline.sizes[1],
        quality=QualityPlan(
            max_perplexity_increase=request.max_perplexity_increase,
            limit=request.omega_limit,
            predicted=sum(request.sensitivity.of(layer, choice) for layer, choice in enumerate(flat)),
            unit=request.sensitivity.unit,
        ),
    )
    violations = check_plan(plan, request.model, request.sensitivity)
    assert not violations, violations
    return replace(plan, estimate=estimate_plan(plan, request.model, request.cluster, request.latency))

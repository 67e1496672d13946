"""`plan_fleet`: a cluster cut into replicas, each with a plan of its own, and how far they are from the best.

In: a `PlanRequest` whose batch is the fleet's, and whose quality limit every replica keeps. Out: a `Fleet` of plans.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.fleet.bound import FleetBound
from hetero_infer.planner.fleet.pipelines import Pipeline
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.search import FleetSearch
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import highs_version
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import HeteroInferError
from hetero_infer.spec.plan import Plan, PlanEstimate, QualityPlan, SolverReport, StagePlan

SEARCH_SHARE = 0.5  # of the time; the rest is for the bound


@dataclass(frozen=True)
class Fleet:
    """`plans[replica]` has its own devices, share of the batch and quality row.

    `bound_s`: no fleet's slowest replica has a shorter closed form, over all ways to cut the cluster.
    """

    plans: tuple[Plan, ...]
    bound_s: float

    @property
    def closed_form_s(self) -> float:
        """Of the slowest replica: the objective."""
        return max(estimate.closed_form_s for estimate in self._estimates)

    @property
    def total_s(self) -> float:
        """Of the slowest replica, by the recurrence: what the fleet promises."""
        return max(estimate.total_s for estimate in self._estimates)

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.bound_s / self.closed_form_s)

    @property
    def tokens_per_s(self) -> float:
        return sum(plan.workload.batch_size * plan.workload.new_tokens for plan in self.plans) / self.total_s

    @property
    def _estimates(self) -> list[PlanEstimate]:
        return [plan.estimate for plan in self.plans if plan.estimate]


def plan_fleet(request: PlanRequest, *, time_limit_s: float, gap: float, replicas: int | None = None) -> Fleet:
    """The fastest fleet found: of `replicas` pipelines, or of as many as are best.

    The bound is improved until it is within `gap` or time is over. Raises `HeteroInferError` where no fleet is found.
    """
    started_s = time.monotonic()
    rates = Rates.of(request)
    found = FleetSearch(rates, replicas, started_s + SEARCH_SHARE * time_limit_s).best()
    if not found:
        raise HeteroInferError(
            "the fleet planner found no replicas that hold the model, the batch and the quality limit; raise [planner] "
            "time_limit_s, lower batch_size or allow fewer bits"
        )
    plans = tuple(_plans(request, rates, found))
    fleet = Fleet(plans, 0.0)
    bound_s = FleetBound(rates).seconds(fleet.closed_form_s, deadline_s=started_s + time_limit_s, gap=gap)
    fleet = replace(fleet, bound_s=bound_s)
    report = SolverReport(
        name=f"fleet, pyomo+highs {highs_version()}",
        status="optimal" if fleet.gap <= gap else "time limit",
        objective=fleet.closed_form_s,
        bound=fleet.bound_s,
        gap=fleet.gap,
        seconds=time.monotonic() - started_s,
    )
    return replace(fleet, plans=tuple(replace(plan, solver=report) for plan in plans))


def _plans(request: PlanRequest, rates: Rates, pipelines: Sequence[Pipeline]) -> Iterator[Plan]:
    """On real devices: alike ones are taken in the order of the hostfile."""
    free = [iter(devices) for devices in rates.kinds]
    for pipeline in pipelines:
        devices = [next(free[stage.kind]) for stage in pipeline.stages]
        yield _plan(request, pipeline, devices)


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

"""`plan_fleet`: a cluster cut into replicas, each with a plan of its own, and how far from the best that can be.

In: a `PlanRequest` whose batch and quality limit are the fleet's and each replica's. Out: a `Fleet` of ordinary plans.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.fleet.bound import FleetBound
from hetero_infer.planner.fleet.pipelines import Pipeline, PipelineSearch
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.planner.fleet.templates import Template, most_sequences
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import UNQUANTISED
from hetero_infer.spec.errors import HeteroInferError
from hetero_infer.spec.plan import Plan, QualityPlan, StagePlan
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class Fleet:
    """`plans[replica]` has its own devices and share of the batch. `bound_s`: no fleet's closed form is shorter."""

    plans: tuple[Plan, ...]
    bound_s: float
    seconds: float

    @property
    def closed_form_s(self) -> float:
        """Of the slowest replica for its share: the objective."""
        return max(plan.estimate.closed_form_s for plan in self.plans if plan.estimate)

    @property
    def total_s(self) -> float:
        """By the recurrence."""
        return max(plan.estimate.total_s for plan in self.plans if plan.estimate)

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.bound_s / self.closed_form_s)

    @property
    def tokens_per_s(self) -> float:
        return sum(plan.workload.batch_size * plan.workload.new_tokens for plan in self.plans) / self.total_s


def plan_fleet(request: PlanRequest, *, time_limit_s: float, gap: float, replicas: int | None = None) -> Fleet:
    """The fastest found, with `replicas` of them or as many as are best."""
    started_s = time.monotonic()
    rates = Rates.of(request)
    search = FleetSearch(rates, replicas, started_s + 0.55 * time_limit_s)
    search.run()
    pipelines = search.best
    plans = _plans(request, rates, pipelines)
    objective_s = max(plan.estimate.closed_form_s for plan in plans if plan.estimate)
    bound_s = FleetBound(rates, replicas).seconds(objective_s, deadline_s=started_s + time_limit_s, gap=gap)
    return Fleet(plans, min(bound_s, objective_s), time.monotonic() - started_s)

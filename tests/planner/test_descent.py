"""What the judge changes makes a plan faster by the seconds that count, and breaks no limit."""

import math
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.random_clusters import random_cluster_request
from hetero_infer.planner.baselines.uniform import uniform
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.descent import descend
from hetero_infer.planner.edits import with_size
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Phase, Plan, Workload


def even_split(seed: int) -> tuple[PlanRequest, Plan] | None:
    request = replace(random_cluster_request(seed), workload=Workload(5, 128, 3))
    plan = uniform(request) if len(request.cluster.devices) < 5 else None
    return (request, plan) if isinstance(plan, Plan) else None


CASES = [case for case in map(even_split, range(40)) if case][:6]


def total_s(request: PlanRequest, plan: Plan) -> float:
    return estimate_plan(plan, request.model, request.cluster, request.latency).total_s


def test_an_even_split_gets_faster_and_keeps_all_limits() -> None:
    gains = []
    for request, plan in CASES:
        better = descend(request, plan, math.inf)
        assert better.estimate and plan.estimate and better.quality
        assert better.estimate.total_s == total_s(request, better) <= plan.estimate.total_s
        assert check_plan(better, request.model, request.sensitivity) == []
        assert better.quality.predicted == pytest.approx(request.sensitivity.total(better.layer_choices))
        assert [stage.device for stage in better.stages] == [stage.device for stage in plan.stages]
        gains.append(plan.estimate.total_s / better.estimate.total_s - 1)
    assert len(gains) == 6 and max(gains) > 0.1


def test_no_other_size_is_faster_where_it_ended() -> None:
    for request, plan in CASES:
        better = descend(request, plan, math.inf)
        assert better.estimate
        for phase in Phase:
            for size in plan.workload.micro_batch_sizes:
                other = with_size(better, phase, size)
                near = total_s(request, other) < better.estimate.total_s * (1 - 1e-6)
                closed_form_s = estimate_plan(other, request.model, request.cluster, request.latency).closed_form_s
                allowed = plan.estimate and closed_form_s <= plan.estimate.closed_form_s
                assert not (near and allowed and not check_plan(other, request.model, request.sensitivity))


def test_at_the_deadline_it_is_the_plan_that_it_was() -> None:
    request, plan = CASES[0]
    assert descend(request, plan, -math.inf) is plan

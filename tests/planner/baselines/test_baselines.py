"""What every baseline promises: a plan that passes the checks, judged by the recurrence, or a reason."""

import itertools
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.planner.baselines.draft import best_sized, judged_s
from hetero_infer.planner.baselines.memory_proportional import proportional_counts
from hetero_infer.planner.baselines.pipeedge import pipeedge
from hetero_infer.planner.baselines.uniform import uniform
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.compare import baselines, compare
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.spec import Plan

from .enumeration import at_sizes


@pytest.mark.parametrize("name", baselines(1))
def test_its_plans_keep_memory_and_quality(name: str) -> None:
    plans, reasons = [], []
    for seed in range(24):
        request = random_request(seed)
        outcome = baselines(60)[name](request)
        if isinstance(outcome, NoPlan):
            reasons.append(outcome.why)
        else:
            assert check_plan(outcome, request.model, request.sensitivity) == []
            assert outcome.estimate and outcome.estimate.total_s == pytest.approx(judged_s(request, outcome))
            plans.append(outcome)
    assert plans and reasons and all(reasons)


@pytest.mark.parametrize("seed", range(10))
def test_the_sizes_are_the_best_that_fit(seed: int) -> None:
    request = random_request(seed)
    device, choice = request.cluster.devices[0], request.choices[0]
    roomy = replace(device, memory_bytes=device.memory_bytes * 4)
    request = replace(request, cluster=replace(request.cluster, devices=(roomy,)), omega_limit=float("inf"))
    stages = [(roomy, (choice,) * request.model.num_hidden_layers)]
    plan = best_sized(request, stages)
    plans = (
        at_sizes(request, stages, *pair) for pair in itertools.product(request.workload.micro_batch_sizes, repeat=2)
    )
    best_s = min((judged_s(request, one) for one in plans if one), default=None)
    if isinstance(plan, Plan):
        assert plan.estimate and plan.estimate.total_s == best_s
    else:
        assert best_s is None or "not measured" in plan.why


def test_layers_follow_memory_and_no_device_is_left_out() -> None:
    assert proportional_counts(12, [1, 2, 3]) == [2, 4, 6]
    assert proportional_counts(4, [1, 1000, 1]) == [1, 2, 1]
    assert proportional_counts(2, [1, 1000, 1]) == [0, 0, 0]


def test_a_comparison_puts_the_plan_first_and_the_others_beside_it() -> None:
    request = next(r for r in map(random_request, range(60)) if isinstance(uniform(r), Plan))
    plan = uniform(request)
    assert isinstance(plan, Plan) and plan.estimate
    this, pipe, none = compare(request, plan, {"PipeEdge": pipeedge, "nobody": lambda _: NoPlan("has no rule")})
    assert this.slower == 1 and this.outcome is plan
    assert pipe.estimate and pipe.slower == pytest.approx(pipe.estimate.total_s / plan.estimate.total_s)
    assert 0 < pipe.fullest[1] <= 1 and pipe.to_json()["omega"] == pipe.omega
    assert none.estimate is None and none.to_json() == {"name": "nobody", "why_none": "has no rule"}

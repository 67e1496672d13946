"""The plan is the best there is: against an exhaustive search over device orders, subsets, sizes, cuts and choices."""

import math

import pytest

from hetero_infer.bench.planner.tiny import brute_force, random_request
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.exact.fluid import fluid_bound_s
from hetero_infer.planner.exact.search_space import SearchSpace
from hetero_infer.planner.problem import omega_rows
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import InfeasibleError, Objective

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_is_faster(seed: int) -> None:
    request, exhaustive = random_request(seed), brute_force(seed)
    if exhaustive.best_s == math.inf:
        with pytest.raises(InfeasibleError):
            find_plan(request, time_limit_s=60, gap=0)
        return
    plan = find_plan(request, time_limit_s=60, gap=0)
    assert plan.estimate and plan.solver and plan.quality
    assert plan.solver.objective == pytest.approx(exhaustive.best_s, rel=1e-9)
    if request.objective is Objective.RING:
        assert plan.estimate.closed_form_s == pytest.approx(exhaustive.best_s, rel=1e-9)
    assert plan.solver.status == "optimal"
    assert plan.solver.bound == pytest.approx(exhaustive.best_s, rel=1e-9)
    assert plan.solver.order_bound == pytest.approx(exhaustive.best_s, rel=1e-6), "HiGHS found no better"
    assert check_plan(plan, request.model, request.sensitivity) == []


def test_the_instances_are_hard_enough_to_mean_something() -> None:
    requests = {seed: random_request(seed) for seed in SEEDS}
    found = [seed for seed in SEEDS if brute_force(seed).best_s < math.inf]
    plans = [find_plan(requests[seed], time_limit_s=60, gap=0) for seed in found[:25]]
    names = [tuple(stage.device for stage in plan.stages) for plan in plans]
    assert len(found) >= 30 and len(SEEDS) - len(found) >= 5
    assert len([seed for seed in found if requests[seed].omega_limit < math.inf]) >= 15
    assert any(len(used) < len(plan.devices) for used, plan in zip(names, plans, strict=True)), "subsets"
    assert any(list(used) != sorted(used) for used in names), "orders"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_fluid_bound_is_below_every_plan_of_its_pair(seed: int) -> None:
    request = random_request(seed)
    space = SearchSpace(request)
    multiplicity = [len(one.devices) for one in space.classes]
    for pair, best_s in brute_force(seed).pair_best_s.items():
        bound_s = fluid_bound_s(
            space.objective(*pair), space.terms(*pair), multiplicity, omega_rows(request), request.omega_limit
        )
        assert bound_s <= best_s * (1 + 1e-9)

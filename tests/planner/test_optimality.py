"""The plan is the best there is: against an exhaustive search over sizes, cuts and per-layer choices."""

import math

import pytest

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.fluid import fluid_bound_s
from hetero_infer.planner.problem import build_problem
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import InfeasibleError

from .instances import brute_force, random_request

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_is_faster_and_no_equally_fast_one_loses_less_quality(seed: int) -> None:
    request, exhaustive = random_request(seed), brute_force(seed)
    if exhaustive.best_s == math.inf:
        with pytest.raises(InfeasibleError):
            find_plan(request, time_limit_s=60, gap=0)
        return
    plan = find_plan(request, time_limit_s=60, gap=0)
    assert plan.estimate and plan.solver and plan.quality
    assert plan.estimate.closed_form_s == pytest.approx(exhaustive.best_s, rel=1e-9)
    assert plan.solver.objective == pytest.approx(plan.estimate.closed_form_s, rel=1e-12)
    assert plan.solver.status == "optimal"
    assert plan.solver.bound == pytest.approx(exhaustive.best_s, rel=1e-8)
    assert plan.solver.bound <= exhaustive.best_s * (1 + 1e-9)
    pair = plan.prefill_micro_batch_size, plan.decode_micro_batch_size
    assert plan.quality.predicted == pytest.approx(exhaustive.least_omega[pair], rel=1e-6, abs=1e-9)
    assert check_plan(plan, request.model, request.sensitivity) == []


def test_the_instances_are_hard_enough_to_mean_something() -> None:
    found = [seed for seed in SEEDS if brute_force(seed).best_s < math.inf]
    limited = [seed for seed in found if random_request(seed).omega_limit < math.inf]
    assert len(found) >= 30 and len(SEEDS) - len(found) >= 5 and len(limited) >= 15
    assert len([seed for seed in found if len(random_request(seed).cluster.devices) > 1]) >= 20


@pytest.mark.parametrize("seed", SEEDS)
def test_the_fluid_bound_is_below_every_plan_of_its_pair(seed: int) -> None:
    request = random_request(seed)
    for pair, best_s in brute_force(seed).pair_best_s.items():
        assert fluid_bound_s(build_problem(request, *pair)) <= best_s

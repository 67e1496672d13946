"""Time limits and impossible wishes are answered, not swallowed."""

import itertools
import math
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import EIGHT, RandomLatency, brute_force, random_request
from hetero_infer.planner import search
from hetero_infer.planner.exact import branch_and_bound
from hetero_infer.spec import HeteroInferError, InfeasibleError, InputError, Objective

EASY = next(  # several pairs, several devices, a quality limit
    seed
    for seed in range(1, 400, 4)
    if (request := random_request(seed)).workload.new_tokens > 2
    and request.workload.batch_size > 2
    and len(request.cluster.devices) > 1
    and request.omega_limit < math.inf
    and request.objective is Objective.RING
    and brute_force(seed).best_s < math.inf
)


def test_what_time_did_not_reach_stays_in_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stops the search after each number of steps in turn: the bound holds, and the gap is the true one."""
    best_s = brute_force(EASY).best_s
    plans = []
    for steps in (*range(1, 20), 10_000):
        ticks = itertools.count()
        monkeypatch.setattr(
            branch_and_bound, "clock_s", lambda ticks=ticks, steps=steps: 0.0 if next(ticks) < steps else 1e9
        )
        try:
            plan = search.find_plan(random_request(EASY), time_limit_s=60, gap=0)
        except HeteroInferError:  # before the first plan
            continue
        assert plan.solver and plan.solver.bound <= best_s * (1 + 1e-9)
        assert plan.solver.objective >= best_s * (1 - 1e-9)
        assert plan.solver.gap == pytest.approx(1 - plan.solver.bound / plan.solver.objective)
        plans.append(plan)
    assert {plan.solver.status for plan in plans[:-1]} >= {"time limit"}
    assert plans[-1].solver.status == "optimal" and plans[-1].solver.objective == pytest.approx(best_s, rel=1e-9)


@pytest.mark.parametrize("seed", [48, 112])
def test_a_plan_that_the_schedules_run_faster_is_taken_from_near_the_best(seed: int) -> None:
    least, judged = (search.find_plan(random_request(seed), time_limit_s=60, gap=gap) for gap in (0, 1e-3))
    assert least.estimate and least.solver and judged.estimate and judged.solver
    assert judged.estimate.total_s < 0.99 * least.estimate.total_s
    above = judged.estimate.closed_form_s / least.solver.objective - 1
    assert judged.solver.gap <= 1e-3 < above < search.MOST_APART, "the proof is about the least closed form"


def test_no_plan_in_time_is_not_called_infeasible() -> None:
    with pytest.raises(HeteroInferError, match="time_limit_s") as raised:
        search.find_plan(random_request(EASY), time_limit_s=0, gap=0)
    assert not isinstance(raised.value, InfeasibleError)


def test_a_quality_limit_out_of_reach_is_said_to_be_the_reason() -> None:
    easy = random_request(EASY)
    omega = ((0.1,),) * easy.model.num_hidden_layers
    lossy = replace(
        easy,
        omega_limit=0.0,
        choices=(EIGHT,),
        latency=RandomLatency(EASY),
        sensitivity=replace(easy.sensitivity, choices=(EIGHT,), omega=omega),
    )
    with pytest.raises(InfeasibleError, match=r"quality limit|lacks"):
        search.find_plan(lossy, time_limit_s=60, gap=0)


def test_the_estimate_agrees_with_the_closed_form_about_what_the_plan_costs() -> None:
    plan = search.find_plan(random_request(EASY), time_limit_s=60, gap=0)
    estimate = plan.estimate
    assert estimate
    assert estimate.total_s == pytest.approx(estimate.closed_form_s, rel=0.3)
    produced = plan.workload.batch_size * plan.workload.new_tokens
    assert estimate.tokens_per_s == pytest.approx(produced / estimate.total_s)
    assert len(estimate.stage_seconds) == len(estimate.memory_bytes) == len(plan.stages)
    assert set(estimate.memory_bytes[0]) == {"weights", "kv_cache", "workspace"}
    for stage, parts in enumerate(estimate.memory_bytes):
        assert sum(parts.values()) <= plan.device_of(stage).memory_bytes


def test_a_choice_without_an_indicator_is_refused_before_planning() -> None:
    request = random_request(EASY)
    with pytest.raises(InputError, match="lacks 8g128 bits"):
        replace(request, choices=(replace(EIGHT, group_size=128),))

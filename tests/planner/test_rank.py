"""The judge has the last word among plans near the best, and none on others."""

from dataclasses import replace

import pytest

from hetero_infer.bench.planner.schedules import plan_of
from hetero_infer.planner.rank import rank
from hetero_infer.spec import Plan, Workload
from hetero_infer.spec.plan import PlanEstimate


def plan(closed_form_s: float, total_s: float, decode_size: int = 1) -> Plan:
    estimate = PlanEstimate(total_s / 4, 3 * total_s / 4, 1.0, closed_form_s, (), ())
    return replace(plan_of(2, Workload(8, 8, 8), 4, decode_size), estimate=estimate)


def test_near_the_best_the_judge_decides() -> None:
    first, second, third = plan(10.0, 9.9), plan(10.05, 9.5, decode_size=3), plan(10.08, 9.8)
    ranking = rank([third, first, second], window=0.01)
    assert ranking.plans == (second, third, first) and ranking.best is second and ranking.proposed is first
    assert ranking.saved_s == pytest.approx(0.4)
    said = str(ranking)
    assert said.startswith("3 plans near the best") and "takes 9.5 s, 4.04% less" in said
    assert "η 4, ξ 3 (localhost:0 1, localhost:1 1 layers)" in said and said.endswith(
        "its closed form, 10.0500 s, is 0.50% above the least"
    )


def test_a_plan_far_from_the_best_is_not_judged() -> None:
    near, far = plan(10.0, 9.9), plan(10.2, 5.0)
    ranking = rank([far, near], window=0.01)
    assert ranking.plans == (near,) and str(ranking) == "no other plan near the best"
    assert rank([far, near], window=0.021).best is far


def test_between_equals_the_closed_form_decides() -> None:
    first, second = plan(10.0, 9.9), plan(10.05, 9.9)
    ranking = rank([second, first], window=0.01)
    assert ranking.best is first and ranking.saved_s == 0 and "the closed form's first stays" in str(ranking)

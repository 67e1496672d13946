"""The next Ω after a broken bound: what it promises, whatever the table said and the text measured."""

import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_infer.planner.tighten import next_limit
from hetero_infer.spec import QualityPlan

losses = st.floats(1e-9, 10)


def broken(predicted: float, measured: float, bound: float, limit: float = math.inf) -> QualityPlan:
    return QualityPlan(bound, limit, predicted, "nats per token", measured)


@given(losses, st.floats(1.000001, 1e6), st.floats(1e-4, 10))
def test_it_is_below_what_the_broken_plan_used_so_that_the_next_one_is_another(
    predicted: float, excess: float, bound: float
) -> None:
    plan = broken(predicted, math.log1p(bound) * excess, bound)
    assert 0 < next_limit([plan]) < plan.predicted


def test_a_table_that_is_fifty_times_too_optimistic_gets_a_fiftieth_and_a_margin() -> None:
    allowed = math.log1p(0.05)
    plan = broken(allowed, 50 * allowed, 0.05)
    assert next_limit([plan]) == pytest.approx(0.9 * allowed / 50)


def test_of_several_replicas_the_one_that_wants_the_tightest_decides() -> None:
    mild, bad = broken(0.04, 0.06, 0.05), broken(0.03, 0.3, 0.05)
    assert next_limit([mild, bad]) == next_limit([bad]) < next_limit([mild])


@pytest.mark.parametrize(("predicted", "bound"), [(0.0, 0.05), (0.01, 0.0)])
def test_where_no_limit_is_tighter_it_is_0(predicted: float, bound: float) -> None:
    assert next_limit([broken(predicted, 0.1, bound)]) == 0


@given(st.lists(st.tuples(losses, losses), min_size=1, max_size=20), st.floats(1e-4, 1))
def test_planning_again_and_again_ends(plans: list[tuple[float, float]], bound: float) -> None:
    """The fastest plan within Ω is taken to be the one that uses most of it; losses are as wrong as they like."""
    limit, allowed = math.inf, math.log1p(bound)
    for number in count():
        within = [plan for plan in plans if plan[0] <= limit]
        if not within or max(within)[1] <= allowed:
            break
        assert number < len(plans)
        before, limit = limit, next_limit([broken(*max(within), bound)])
        assert limit < before

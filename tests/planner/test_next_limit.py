"""The next Ω after a text was read: what it promises, whatever the table said and the text measured."""

import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_infer.planner.next_limit import ENOUGH, next_limit, uses_enough
from hetero_infer.spec import QualityPlan

losses = st.floats(1e-9, 10)


def read(predicted: float, measured: float, bound: float, limit: float = math.inf) -> QualityPlan:
    return QualityPlan(bound, limit, predicted, "nats per token", measured)


@given(losses, st.floats(1.000001, 1e6), st.floats(1e-4, 10))
def test_it_is_below_what_the_broken_plan_used_so_that_the_next_one_is_another(
    predicted: float, excess: float, bound: float
) -> None:
    plan = read(predicted, math.log1p(bound) * excess, bound)
    assert 0 < next_limit([plan]) < plan.predicted


def test_a_table_that_is_fifty_times_too_optimistic_gets_a_fiftieth_and_a_margin() -> None:
    allowed = math.log1p(0.05)
    plan = read(allowed, 50 * allowed, 0.05)
    assert next_limit([plan]) == pytest.approx(0.9 * allowed / 50)


def test_of_several_replicas_the_one_that_wants_the_tightest_decides() -> None:
    mild, bad = read(0.04, 0.06, 0.05), read(0.03, 0.3, 0.05)
    assert next_limit([mild, bad]) == next_limit([bad]) < next_limit([mild])


@pytest.mark.parametrize(("predicted", "bound"), [(0.0, 0.05), (0.01, 0.0)])
def test_where_no_limit_is_tighter_it_is_0(predicted: float, bound: float) -> None:
    assert next_limit([read(predicted, 0.1, bound)]) == 0


@given(st.lists(st.tuples(losses, losses), min_size=1, max_size=20), st.floats(1e-4, 1))
def test_planning_again_and_again_ends(plans: list[tuple[float, float]], bound: float) -> None:
    """The fastest plan within Ω is taken to be the one that uses most of it; losses are as wrong as they like."""
    limit, allowed = math.inf, math.log1p(bound)
    for number in count():
        within = [plan for plan in plans if plan[0] <= limit]
        if not within or max(within)[1] <= allowed:
            break
        assert number < len(plans)
        before, limit = limit, next_limit([read(*max(within), bound)])
        assert limit < before


def test_a_plan_that_uses_a_fifth_may_lose_four_and_a_half_times_as_much() -> None:
    plan = read(0.02, math.log1p(0.02) / 5, 0.02)
    assert next_limit([plan]) == pytest.approx(4.5 * plan.predicted) and not uses_enough([plan])


@pytest.mark.parametrize("measured", [-0.01, 0.0, 1e-9])
def test_a_plan_that_loses_nothing_is_not_loosened_without_end(measured: float) -> None:
    assert next_limit([read(0.02, measured, 0.02)]) == pytest.approx(8 * 0.02)


@given(losses, st.floats(1e-6, 0.999), st.floats(1.001, 100))
def test_a_looser_limit_stays_below_what_broke_the_bound(predicted: float, used: float, above: float) -> None:
    plan, ceiling = read(predicted, math.log1p(0.05) * used, 0.05), predicted * above
    assert next_limit([plan], ceiling) < ceiling


@given(losses, st.floats(0.001, ENOUGH * 0.99))
def test_a_plan_that_is_loosened_is_given_more_than_it_used(predicted: float, used: float) -> None:
    plan = read(predicted, math.log1p(0.05) * used, 0.05)
    assert not uses_enough([plan]) and next_limit([plan]) > predicted


def test_half_of_the_allowance_is_enough_and_so_is_a_plan_that_loses_nothing_by_the_table() -> None:
    allowed = math.log1p(0.05)
    assert uses_enough([read(0.02, allowed * ENOUGH, 0.05)])
    assert not uses_enough([read(0.02, allowed * ENOUGH * 0.9, 0.05)])
    assert uses_enough([read(0.0, 0.0, 0.05)])
    assert uses_enough([read(0.02, 0.001, 0.05), read(0.02, allowed * 0.8, 0.05)]), "one replica has no room"

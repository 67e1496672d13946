"""Seconds as a sum of terms: what the points determine is found, what they do not is not made up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_infer.cost.interpolation import Points
from hetero_infer.cost.regression import Regression
from hetero_infer.spec import Phase

SCATTERED = ((1, 64), (2, 512), (3, 100), (5, 300), (8, 128), (16, 700), (32, 32))


def prefill_s(batch: int, tokens: int) -> float:
    return 2e-3 + 3e-4 * batch + 1e-5 * tokens + 4e-6 * batch * tokens + 5e-9 * batch * tokens**2


def decode_s(batch: int, past: int) -> float:
    return 1e-3 + 2e-5 * batch + 3e-7 * past + 4e-8 * batch * (past + 1)


SECONDS = {Phase.PREFILL: prefill_s, Phase.DECODE: decode_s}


@pytest.mark.parametrize("phase", Phase)
def test_scattered_points_give_the_terms_back_far_beyond_them(phase: Phase) -> None:
    fit = Regression({size: SECONDS[phase](*size) for size in SCATTERED}, phase)
    assert fit.is_determined
    for size in itertools.product((1, 7, 64), (1, 999, 8000)):
        assert fit.seconds(*size) == pytest.approx(SECONDS[phase](*size), rel=1e-6)


def test_it_errs_least_relative_to_each_point() -> None:
    """Constant seconds, of 1 and of 3: the mean would be 2; the least (c/1 - 1)² + (c/3 - 1)² is at 1.2."""
    fit = Regression({(1, 10): 3.0, (1, 20): 1.0}, Phase.DECODE)
    assert fit.seconds(1, 10) == fit.seconds(1, 20) == pytest.approx(1.2)


sizes = st.tuples(st.integers(1, 32), st.integers(1, 2048))


@given(st.dictionaries(sizes, st.floats(1e-5, 10), min_size=1, max_size=12), st.sampled_from(Phase), sizes, sizes)
def test_more_work_never_takes_less_time_whatever_was_measured(
    points: Points, phase: Phase, less: tuple[int, int], more: tuple[int, int]
) -> None:
    fit = Regression(points, phase)
    both = max(less[0], more[0]), max(less[1], more[1])
    assert 0 <= fit.seconds(*less) <= fit.seconds(*both)


def test_points_that_leave_a_term_open_do_not_determine_it() -> None:
    """Batch and length grow together: nobody knows which of them costs the seconds."""
    together = {(batch, 100 * batch): decode_s(batch, 100 * batch) for batch in (1, 2, 4, 8, 16)}
    assert not Regression(together, Phase.DECODE).is_determined
    assert Regression({**together, (1, 800): 1.0, (16, 100): 1.0}, Phase.DECODE).is_determined


def test_two_prompt_lengths_are_a_straight_line_and_three_have_attention() -> None:
    two = {(batch, tokens): prefill_s(batch, tokens) for batch in (1, 2, 4) for tokens in (128, 512)}
    line = Regression(two, Phase.PREFILL)
    middle = (prefill_s(2, 128) + prefill_s(2, 512)) / 2
    assert line.is_determined and line.seconds(2, 320) == pytest.approx(middle, rel=1e-3)
    three = two | {(batch, 256): prefill_s(batch, 256) for batch in (1, 2, 4)}
    assert Regression(three, Phase.PREFILL).seconds(2, 1024) == pytest.approx(prefill_s(2, 1024), rel=1e-6)


def test_less_than_the_only_batch_measured_costs_as_much_as_it() -> None:
    fit = Regression({(2, tokens): decode_s(2, tokens) for tokens in (100, 200, 400)}, Phase.DECODE)
    assert fit.is_determined and fit.seconds(1, 300) == fit.seconds(2, 300) == pytest.approx(decode_s(2, 300))

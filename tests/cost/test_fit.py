"""Which method is used: the one that predicts better what it was not shown."""

import pytest

from hetero_infer.cost.fit import fits
from hetero_infer.spec import Phase

BATCHES, PASTS = (1, 2, 3, 4, 5), (128, 256, 512)


def test_a_sum_of_terms_is_found_by_regression_though_noise_is_on_it() -> None:
    noise = {(b, p): 1 + 0.05 * (-1) ** (b + PASTS.index(p)) for b in BATCHES for p in PASTS}
    points = {(b, p): (1e-3 + 1e-4 * b + 1e-6 * p) * noise[b, p] for b, p in noise}
    best, other = fits(points, Phase.DECODE)
    assert (best.method, other.method) == ("regression", "interpolation")
    assert best.holdout.mean < other.holdout.mean


def test_a_step_is_followed_by_interpolation() -> None:
    points = {(1, tokens): 1.0 if tokens <= 300 else 3.0 for tokens in range(100, 700, 50)}
    best, other = fits(points, Phase.PREFILL)
    assert best.method == "interpolation" and best.holdout.mean < other.holdout.mean


def test_both_predict_the_same_points_from_the_same_others() -> None:
    """Batches 2 and 4 and the past of 256 are inside their axes: 5 × 3 points less the 3 × 2 at the ends."""
    exact = {(b, p): 1e-3 + 1e-4 * b * (p + 1) for b in BATCHES for p in PASTS}
    for fit in fits(exact, Phase.DECODE):
        assert {measured for _, measured in fit.held_out} == {exact[b, p] for b, p in exact if b in (2, 4) or p == 256}
        assert fit.holdout.points == 9 and fit.holdout.worst == pytest.approx(0, abs=1e-9)


def test_scattered_points_have_a_regression_only() -> None:
    points = {
        (b, p): 1e-3 + 1e-4 * b + 1e-6 * p for b, p in ((1, 10), (2, 99), (3, 50), (4, 400), (6, 7), (9, 200), (8, 8))
    }
    (fit,) = fits(points, Phase.DECODE)
    assert fit.method == "regression" and fit.holdout.points == 3
    assert not fits(dict(list(points.items())[:3]), Phase.DECODE), "three points for four terms"


def test_where_nothing_can_be_held_out_a_grid_is_interpolated() -> None:
    best, other = fits({(b, p): 1e-3 * b + p for b in (1, 8) for p in (10, 20)}, Phase.DECODE)
    assert (best.method, best.holdout, other.holdout) == ("interpolation", None, None)

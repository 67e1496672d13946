"""Seconds between the points of a whole grid."""

import pytest

from hetero_infer.cost.interpolation import Grid, is_grid

BATCHES, TOKENS = (1, 4, 8), (32, 128, 512)
POINTS = {(batch, tokens): 1e-3 + 1e-5 * batch**1.5 * tokens for batch in BATCHES for tokens in TOKENS}
GRID = Grid(POINTS)


def test_a_measured_point_is_reproduced_exactly() -> None:
    assert {size: GRID.seconds(*size) for size in POINTS} == POINTS


def test_between_points_it_is_bilinear() -> None:
    corners = [POINTS[batch, tokens] for batch in (4, 8) for tokens in (128, 512)]
    assert GRID.seconds(6, 320) == pytest.approx(sum(corners) / 4, rel=1e-12)


def test_beyond_the_grid_the_last_slope_goes_on() -> None:
    step = GRID.seconds(4, 512) - GRID.seconds(4, 128)
    assert GRID.seconds(4, 512 + 384) == pytest.approx(GRID.seconds(4, 512) + step, rel=1e-12)


def test_more_work_never_takes_less_time_outside_the_grid() -> None:
    falling = Grid({(1, 16): 5e-3, (1, 64): 4e-3})
    assert falling.seconds(1, 64) == falling.seconds(1, 1000) == 4e-3
    assert 0 < falling.seconds(1, 1) <= falling.seconds(1, 8) <= falling.seconds(1, 16) == 5e-3
    along_tokens = [GRID.seconds(4, tokens) for tokens in range(1, 2000, 7)]
    along_batch = [GRID.seconds(batch, 128) for batch in range(1, 64)]
    assert along_tokens == sorted(along_tokens) and along_batch == sorted(along_batch)


def test_less_work_than_measured_takes_at_least_its_share() -> None:
    assert Grid({(1, 100): 1e-3, (1, 200): 9e-3}).seconds(1, 50) == 0.5e-3


def test_a_hole_makes_it_no_grid() -> None:
    assert is_grid(POINTS)
    assert not is_grid({size: seconds for size, seconds in POINTS.items() if size != (4, 128)})

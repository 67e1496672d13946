"""α and β from timed messages."""

import random

import pytest

from hetero_infer.cost.link_fit import fit_link, link_holdout
from hetero_infer.spec import Link

SIZES = [2**power for power in range(10, 25, 2)]


def points(link: Link, noise: float = 0.0) -> list[tuple[int, float]]:
    rng = random.Random(0)
    return [(size, link.seconds(size) * (1 + rng.uniform(-noise, noise))) for size in SIZES]


@pytest.mark.parametrize("link", [Link(6e-5, 4e9), Link(2e-3, 1.25e7), Link(1e-6, 2.5e10)])
def test_a_link_is_recovered_from_its_messages(link: Link) -> None:
    found = fit_link(points(link))
    assert found.alpha_s == pytest.approx(link.alpha_s, rel=1e-6)
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s, rel=1e-6)
    noisy = fit_link(points(link, noise=0.1))
    assert noisy.alpha_s == pytest.approx(link.alpha_s, rel=0.1)
    assert noisy.bytes_per_s == pytest.approx(link.bytes_per_s, rel=0.1)


def test_no_term_is_negative() -> None:
    convex = [(1000, 1e-6), (2000, 3e-6), (4000, 9e-6)]  # a straight line through them starts below 0
    assert fit_link(convex).alpha_s == 0.0
    falling = [(1000, 3e-4), (2000, 2e-4), (4000, 1e-4)]
    found = fit_link(falling)
    assert found.bytes_per_s == pytest.approx(4000 / 1e-4) and found.alpha_s > 0


def test_a_small_message_matters_as_much_as_a_large_one() -> None:
    """The large one is 10 % off a line that the others follow; absolute squares would move α by many times its size."""
    link = Link(6e-5, 4e9)
    bent = [*points(link)[:-1], (SIZES[-1], link.seconds(SIZES[-1]) * 1.1)]
    assert fit_link(bent).alpha_s == pytest.approx(link.alpha_s, rel=0.05)


def test_held_out_sizes_say_how_good_the_line_is() -> None:
    exact = link_holdout(points(Link(6e-5, 4e9)))
    assert exact.points == 3 and exact.worst == pytest.approx(0, abs=1e-9)
    bent = points(Link(6e-5, 4e9))
    bent[3] = (bent[3][0], bent[3][1] * 2)  # of those held out
    off = link_holdout(bent)
    assert off.worst == pytest.approx(0.5) and off.mean == pytest.approx(0.5 / 3)
    assert link_holdout(bent[:2]) is None

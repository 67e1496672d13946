"""The Pareto front as a picture: perplexity to the right, tokens/s upwards, a colour for each number of devices."""

import math
from collections.abc import Sequence
from html import escape

from hetero_infer.page.lanes import legend
from hetero_infer.planner.answers.pareto import ParetoPoint
from hetero_infer.report import increase_words

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
DECADES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of perplexity increase that get a line
LEAST_INCREASE, MOST_INCREASE = 1e-4, 10.0  # what is less or more is drawn at the edge
COLOURS = 6


def pareto_chart(front: Sequence[ParetoPoint], chosen: ParetoPoint) -> str:
    """`chosen` is the plan of the page, with a ring."""
    shown = [point for point in front if point != chosen] + [chosen]
    xs = [_log(point.perplexity_increase) for point in shown]
    left, right = min(xs) - 0.15, max(xs) + 0.15
    top = _round_up(max(point.tokens_per_s for point in shown))

    def x(increase: float) -> float:
        return LEFT + (_log(increase) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(tokens_per_s: float) -> float:
        return HEIGHT - BOTTOM - tokens_per_s / top * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for decade in DECADES:
        if left <= math.log10(decade) <= right:
            parts.append(
                f'<line class="grid" x1="{x(decade):.1f}" x2="{x(decade):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            )
            words = f'<text x="{x(decade):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            parts.append(f"{words}+{decade * 100:g}%</text>")
    counts = sorted({point.num_devices for point in shown})
    for point in shown:
        colour = f"series-{counts.index(point.num_devices) % COLOURS}"
        place = f'cx="{x(point.perplexity_increase):.1f}" cy="{y(point.tokens_per_s):.1f}"'
        title = (
            f"{point.tokens_per_s:.1f} tokens/s, perplexity {increase_words(point.perplexity_increase)}, "
            f"{point.num_devices} devices, gap {point.gap:.2%}"
        )
        if point is chosen:
            parts.append(f'<circle class="ring" {place} r="9"/>')
        parts.append(f'<circle class="{colour}" {place} r="5"><title>{escape(title)}</title></circle>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">perplexity over the unquantised model →</text>')
    parts.append(f'<text transform="translate(11 {HEIGHT - BOTTOM}) rotate(-90)">tokens/s →</text>')
    says = f"{len(front)} plans, from {front[-1].tokens_per_s:.1f} to {front[0].tokens_per_s:.1f} tokens per second"
    colours = [(f"series-{k % COLOURS}", f"{count} device{'s' * (count > 1)}") for k, count in enumerate(counts)]
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(says)}">'
    return f"{opening}{''.join(parts)}</svg>{legend([*colours, ('ring', 'the plan of this page')])}"


def _log(increase: float) -> float:
    return math.log10(min(max(increase, LEAST_INCREASE), MOST_INCREASE))


def _round_up(value: float) -> float:
    """To a figure that four equal steps divide well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value)

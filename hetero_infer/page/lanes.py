"""Lanes: a row per stage with its name, a bar as wide as the page, and a figure. Text is HTML, the bar is SVG.

A bar's SVG is stretched to the page, so a phone shows the same bar narrower and the text as large as before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 20  # of a bar, in its own units


@dataclass(frozen=True)
class Piece:
    """A part of a bar, from `start` to `end` as shares of it; `style` is a class of style.css."""

    start: float
    end: float
    style: str
    title: str = ""


@dataclass(frozen=True)
class Lane:
    """`length` is the share of the page that the bar's background takes; `says` is the lane for a screen reader."""

    name: str
    figure: str
    pieces: Sequence[Piece]
    says: str
    length: float = 1.0


def lanes(of: Iterable[Lane], axis: Sequence[str] = ()) -> str:
    """`axis` are evenly spaced words under the bars."""
    rows = [_lane(lane) for lane in of]
    if axis:
        words = "".join(f"<span>{escape(word)}</span>" for word in axis)
        rows.append(f'<div class="lane axis" aria-hidden="true"><span></span><div class="ticks">{words}</div></div>')
    return f'<div class="lanes">{"".join(rows)}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """A swatch of each style and what it means."""
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" class="{style}"/></svg>'
        f"{escape(word)}</li>"
        for style, word in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _lane(lane: Lane) -> str:
    pieces = "".join(map(_piece, lane.pieces))
    return (
        f'<div class="lane"><span class="name">{escape(lane.name)}</span>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(lane.says)}">'
        f'<rect width="{lane.length * WIDTH:.4g}" height="{HEIGHT}" class="track"/>{pieces}</svg>'
        f'<span class="figure">{escape(lane.figure)}</span></div>'
    )


def _piece(piece: Piece) -> str:
    x, width = piece.start * WIDTH, (piece.end - piece.start) * WIDTH
    box = f'<rect x="{x:.5g}" width="{width:.4g}" height="{HEIGHT}" class="{piece.style}"'
    return f"{box}><title>{escape(piece.title)}</title></rect>" if piece.title else f"{box}/>"

"""A `Timeline` as a picture: a row per stage, a box per micro-batch, time to the right. Plain SVG, no dependency."""

from dataclasses import dataclass
from html import escape

from hetero_infer.pipeline.instructions import DecodeForward, PrefillForward
from hetero_infer.pipeline.simulate import Timeline
from hetero_infer.spec import Phase

LEFT, TOP, ROW, BOX, WIDTH = 310, 34, 46, 34, 1060  # pixels
PREFILL_COLOURS = ("#c2571a", "#e08a4f")
DECODE_COLOURS = ("#1f5f8b", "#4b8fbe", "#86bcdf", "#2f7d7a", "#6bb3ae")


@dataclass(frozen=True)
class Box:
    """A stage computes a micro-batch."""

    stage: int
    phase: Phase
    micro_batch: int
    start_s: float
    end_s: float


def boxes(timeline: Timeline) -> list[Box]:
    """The forward passes of a timeline; what waits or sends has no box."""
    return [
        Box(event.stage, event.instruction.phase, event.instruction.micro_batch, event.start_s, event.end_s)
        for event in timeline.events
        if isinstance(event.instruction, PrefillForward | DecodeForward)
    ]


def draw_gantt(timeline: Timeline, stage_labels: list[str], caption: str) -> str:
    """Prefill micro-batches in orange, decode micro-batches in blue, one shade each."""
    scale = WIDTH / timeline.makespan_s
    height = TOP + ROW * len(stage_labels) + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" '
        'font-family="sans-serif" font-size="14" fill="#222">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="22">{escape(caption)}</text>',
    ]
    for stage, label in enumerate(stage_labels):
        top = TOP + ROW * stage
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{BOX}" fill="#f0f0f0"/>')
        parts.append(f'<text x="10" y="{top + 22}">{escape(label)}</text>')
    for box in boxes(timeline):
        colours = PREFILL_COLOURS if box.phase is Phase.PREFILL else DECODE_COLOURS
        left, width = LEFT + box.start_s * scale, max(0.5, (box.end_s - box.start_s) * scale)
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP + ROW * box.stage}" width="{width:.1f}" height="{BOX}" '
            f'fill="{colours[box.micro_batch % len(colours)]}" stroke="#fff" stroke-width="0.4"/>'
        )
    bottom = TOP + ROW * len(stage_labels) + 16
    for share in (0, 0.25, 0.5, 0.75, 1):
        anchor = "end" if share == 1 else "middle" if share else "start"
        parts.append(
            f'<text x="{LEFT + WIDTH * share:.0f}" y="{bottom}" text-anchor="{anchor}" font-size="12">'
            f"{timeline.makespan_s * share:.2f} s</text>"
        )
    for index, (colour, word) in enumerate(((PREFILL_COLOURS[0], "prefill"), (DECODE_COLOURS[0], "decode"))):
        left = LEFT + 260 * index
        parts.append(f'<rect x="{left}" y="{bottom + 12}" width="14" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{left + 20}" y="{bottom + 24}" font-size="12">{word}, a shade per micro-batch</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"

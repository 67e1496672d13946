"""What a plan looks like: when each device works, what fills its memory, the bits of every layer."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from hetero_infer.page.lanes import Lane, Piece, lanes, legend
from hetero_infer.pipeline.gantt import Box
from hetero_infer.report import GIB, MIB, device_words, duration
from hetero_infer.spec import Device, Phase, Plan

SHADES = 4  # of each phase, for neighbouring micro-batches
TICKS = 4
TOUCHING = 4e-4  # of the whole time: a smaller pause is not drawn
ROUNDS_SHOWN = 3
PARTS = {"weights": "weights", "kv_cache": "KV cache", "workspace": "workspace"}


def whole_batch(plan: Plan, boxes: Sequence[Box], total_s: float) -> str:
    """Who works when, from the first prompt to the last token; micro-batches that follow closely are one piece."""

    def pieces(stage: int) -> Iterator[Piece]:
        ours = [box for box in boxes if box.stage == stage]
        for phase, run in itertools.groupby(ours, lambda box: box.phase):
            for start_s, end_s in _joined(((box.start_s, box.end_s) for box in run), TOUCHING * total_s):
                yield Piece(start_s / total_s, end_s / total_s, _style(phase, 0))

    busy_s = [sum(box.end_s - box.start_s for box in boxes if box.stage == stage) for stage in range(len(plan.stages))]
    rows = [
        Lane(
            _name(plan, stage),
            f"{busy_s[stage] / total_s:.0%} busy",
            list(pieces(stage)),
            f"{_name(plan, stage)} computes {busy_s[stage] / total_s:.0%} of {duration(total_s)}",
        )
        for stage in range(len(plan.stages))
    ]
    return lanes(rows, _ticks(0.0, total_s)) + legend((_style(phase, 0), phase.value) for phase in Phase)


def prefill(plan: Plan, boxes: Sequence[Box], prefill_s: float) -> str:
    """Every prefill micro-batch, and what decodes already."""
    return _window(plan, boxes, 0.0, prefill_s)


def decode_rounds(plan: Plan, boxes: Sequence[Box], prefill_s: float, decode_s: float) -> str:
    """A few rounds at the middle of the generation."""
    round_s = decode_s / (plan.workload.new_tokens - 1)
    shown_s = min(ROUNDS_SHOWN * round_s, decode_s)
    start_s = prefill_s + (decode_s - shown_s) / 2
    return _window(plan, boxes, start_s, start_s + shown_s)


def memory_bars(plan: Plan) -> str:
    """Each device's memory, to the scale of the largest, and what is in it."""
    assert plan.estimate
    largest = max(device.memory_bytes for device in plan.devices)
    rows = []
    for stage, parts in enumerate(plan.estimate.memory_bytes):
        device = plan.device_of(stage)
        ends = itertools.accumulate((parts[part] for part in PARTS), initial=0)
        pieces = [
            Piece(start / largest, end / largest, part.replace("_", "-"), f"{word}: {_size(parts[part])}")
            for (part, word), (start, end) in zip(PARTS.items(), itertools.pairwise(ends), strict=True)
        ]
        used = plan.estimate.memory_of(stage)
        said = ", ".join(f"{word} {_size(parts[part])}" for part, word in PARTS.items())
        name = _name(plan, stage)
        rows.append(
            Lane(
                name,
                _of(used, device.memory_bytes),
                pieces,
                f"{name}: {said}, of {_size(device.memory_bytes)}",
                device.memory_bytes / largest,
            )
        )
    for device in unused_devices(plan):
        rows.append(
            Lane(
                device_words(device),
                f"{_size(device.memory_bytes)} unused",
                [],
                f"{device.name} is not used",
                device.memory_bytes / largest,
            )
        )
    return lanes(rows) + legend([(part.replace("_", "-"), word) for part, word in PARTS.items()] + [("track", "free")])


def bits_map(plan: Plan) -> str:
    """Layers from left to right, embedding first and head last; each stands on its stage's lane in its bits' colour."""
    width = len(plan.layer_choices)
    names = ["embedding", *(f"layer {layer}" for layer in range(width - 2)), "head"]
    rows = []
    for stage, (start, stop) in enumerate(itertools.pairwise(plan.bounds)):
        pieces = [
            Piece(i / width, (i + 1) / width, f"bits-{choice.bits}", f"{names[i]}: {choice.bits} bits")
            for i, choice in enumerate(plan.layer_choices[start:stop], start)
        ]
        name, said = _name(plan, stage), _bits_words(plan.layer_choices[i].bits for i in range(start, stop))
        count = len(plan.decoder_range(stage))
        rows.append(Lane(name, f"{count} layer{'s' * (count != 1)}", pieces, f"{name}: {said}"))
    counts = Counter(choice.bits for choice in plan.layer_choices)
    axis = ["embedding", f"{width - 2} decoder layers", "head"]
    return lanes(rows, axis) + legend((f"bits-{bits}", f"{bits} bits: {counts[bits]}") for bits in sorted(counts))


def unused_devices(plan: Plan) -> list[Device]:
    """Those of the hostfile that have no stage."""
    used = {stage.device for stage in plan.stages}
    return [device for device in plan.devices if device.name not in used]


def _window(plan: Plan, boxes: Sequence[Box], start_s: float, end_s: float) -> str:
    """A box for each micro-batch between two times."""
    shown = [box for box in boxes if box.start_s < end_s and box.end_s > start_s]
    rows = []
    for stage in range(len(plan.stages)):
        ours = [box for box in shown if box.stage == stage]
        inside_s = [(max(box.start_s, start_s), min(box.end_s, end_s)) for box in ours]
        busy = sum(stop - start for start, stop in inside_s) / (end_s - start_s)
        pieces = [
            Piece(
                (start - start_s) / (end_s - start_s),
                (stop - start_s) / (end_s - start_s),
                _style(box.phase, box.micro_batch % SHADES),
                f"{box.phase.value} micro-batch {box.micro_batch}: {duration(box.end_s - box.start_s)}",
            )
            for box, (start, stop) in zip(ours, inside_s, strict=True)
        ]
        name = _name(plan, stage)
        says = f"{name} computes {busy:.0%} of the time from {duration(start_s)} to {duration(end_s)}"
        rows.append(Lane(name, f"{busy:.0%} busy", pieces, says))
    return lanes(rows, _ticks(start_s, end_s))


def _joined(spans_s: Iterable[tuple[float, float]], pause_s: float) -> list[list[float]]:
    """Spans in order, those with less than `pause_s` between them as one."""
    joined: list[list[float]] = []
    for start_s, end_s in spans_s:
        if joined and start_s - joined[-1][1] < pause_s:
            joined[-1][1] = end_s
        else:
            joined.append([start_s, end_s])
    return joined


def _ticks(start_s: float, end_s: float) -> list[str]:
    return [duration(start_s + (end_s - start_s) * tick / TICKS) for tick in range(TICKS + 1)]


def _style(phase: Phase, shade: int) -> str:
    return f"{phase.value}-{shade}"


def _name(plan: Plan, stage: int) -> str:
    return f"{stage} · {device_words(plan.device_of(stage))}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.1f} MiB"


def _of(used_bytes: int, num_bytes: int) -> str:
    """``29.1 of 32.0 GiB``"""
    unit, unit_bytes = ("GiB", GIB) if num_bytes >= GIB else ("MiB", MIB)
    return f"{used_bytes / unit_bytes:.1f} of {num_bytes / unit_bytes:.1f} {unit}"


def _bits_words(bits: Iterable[int]) -> str:
    """``3 at 4 bits, then 2 at 8 bits``."""
    runs = ((value, len(list(run))) for value, run in itertools.groupby(bits))
    return ", then ".join(f"{count} at {value} bits" for value, count in runs)

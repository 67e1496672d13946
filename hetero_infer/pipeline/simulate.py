"""The dry run: execute schedules without tensors, find what can't be executed, and time what can.

Every stage is a station, every link is a station of its own, and so is the return of the tokens. In: one schedule per
stage and the seconds of each instruction. Out: a `Timeline`, or a `ScheduleError` that shows where each stage stood.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hetero_infer.pipeline.instructions import (
    MicroBatchInstruction,
    RecvActivations,
    RecvTokens,
    SendActivations,
    SendTokens,
)
from hetero_infer.pipeline.schedules import Schedule
from hetero_infer.spec import HeteroInferError

Cost = Callable[[int, MicroBatchInstruction], float]


class ScheduleError(HeteroInferError):
    """Schedules that deadlock, or that leave a message unpaired."""


@dataclass(frozen=True)
class Event:
    stage: int
    instruction: MicroBatchInstruction
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """`events` are what stages do; `transfers` are the same sends as their links see them, which nobody waits for."""

    events: tuple[Event, ...]
    transfers: tuple[Event, ...] = ()

    @property
    def makespan_s(self) -> float:
        return max((event.end_s for event in self.events), default=0.0)


@dataclass
class _Link:
    """Messages on their way from one stage to another: first in, first out."""

    free_at_s: float = 0.0
    arrivals: deque[tuple[str, float]] = field(default_factory=deque)
    carried: list[Event] = field(default_factory=list)


def simulate(schedules: Sequence[Iterable[Schedule]], cost: Cost) -> Timeline:
    """Run each stage's schedules one after the other.

    Args:
        schedules: per stage, its schedules in order.
        cost: seconds of an instruction on a stage. For a send it is the time on the link, which the sender
            does not wait for; a receive waits for its message and takes no time of its own.
    """
    programs = [_instructions(stage_schedules) for stage_schedules in schedules]
    current = [next(program, None) for program in programs]
    clock_s = [0.0] * len(programs)
    links: dict[tuple[int, int, bool], _Link] = {}
    events: list[Event] = []
    progressed = True
    while progressed:
        progressed = False
        for stage, program in enumerate(programs):
            while (instruction := current[stage]) is not None:
                end_s = _execute(stage, instruction, clock_s[stage], cost, links, len(programs))
                if end_s is None:
                    break
                events.append(Event(stage, instruction, clock_s[stage], end_s))
                clock_s[stage] = end_s
                current[stage] = next(program, None)
                progressed = True
    _refuse_unfinished(current, links, events, len(programs))
    return Timeline(tuple(events), tuple(event for link in links.values() for event in link.carried))


def _instructions(schedules: Iterable[Schedule]) -> Iterable[MicroBatchInstruction]:
    return (instruction for schedule in schedules for step in schedule for instruction in step)


def _execute(
    stage: int,
    instruction: MicroBatchInstruction,
    now_s: float,
    cost: Cost,
    links: dict[tuple[int, int, bool], _Link],
    num_stages: int,
) -> float | None:
    """When the instruction ends, or None while the message it waits for has not been sent."""
    if isinstance(instruction, SendActivations | SendTokens):
        returns = isinstance(instruction, SendTokens)
        target = 0 if returns else stage + 1
        link = links.setdefault((stage, target, returns), _Link())
        start_s = max(link.free_at_s, now_s)
        link.free_at_s = start_s + cost(stage, instruction)
        link.arrivals.append((instruction.label, link.free_at_s))
        link.carried.append(Event(stage, instruction, start_s, link.free_at_s))
        return now_s
    if isinstance(instruction, RecvActivations | RecvTokens):
        returns = isinstance(instruction, RecvTokens)
        source = num_stages - 1 if returns else stage - 1
        link = links.get((source, stage, returns))
        if link is None or not link.arrivals:
            return None
        label, arrival_s = link.arrivals.popleft()
        if label != instruction.label:
            raise ScheduleError(f"stage {stage} waits for {instruction.label} and is sent {label} by stage {source}")
        return max(now_s, arrival_s)
    return now_s + cost(stage, instruction)


def _refuse_unfinished(
    current: Sequence[MicroBatchInstruction | None],
    links: dict[tuple[int, int, bool], _Link],
    events: Sequence[Event],
    num_stages: int,
) -> None:
    stuck = [f"stage {stage} at {instruction!r}" for stage, instruction in enumerate(current) if instruction]
    if stuck:
        raise ScheduleError(f"deadlock: {', '.join(stuck)}\n{draw_grid(Timeline(tuple(events)), num_stages)}")
    for (source, target, _), link in links.items():
        if link.arrivals:
            labels = ", ".join(label for label, _ in link.arrivals)
            raise ScheduleError(f"stage {source} sends {labels} and stage {target} never receives it")


def draw_grid(timeline: Timeline, num_stages: int, unit_s: float = 1.0) -> str:
    """Time down in rows of `unit_s`, stages across; a cell names what the stage worked on longest in that time."""
    spent_s: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for event in timeline.events:
        if not isinstance(event.instruction, RecvActivations | RecvTokens):
            for row in range(int(event.start_s / unit_s), math.ceil(event.end_s / unit_s)):
                overlap_s = min(event.end_s, (row + 1) * unit_s) - max(event.start_s, row * unit_s)
                spent_s[row, event.stage][event.instruction.label] += overlap_s
    cells = {cell: spent.most_common(1)[0][0] for cell, spent in spent_s.items()}
    rows = range(1 + max((row for row, _ in cells), default=-1))
    lines = ["time  " + "".join(f"stage {stage:<3}" for stage in range(num_stages))]
    lines += [
        f"{row:4}  " + "".join(f"{cells.get((row, stage), '·'):<9}" for stage in range(num_stages)) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)

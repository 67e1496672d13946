"""Every send has its receive, no sequence outruns its own tokens, and what breaks either is found. No tensors here."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from hetero_infer.pipeline.instructions import (
    DecodeForward,
    LoadPrompts,
    LoadTokens,
    MicroBatchInstruction,
    PrefillForward,
    RecvActivations,
    RecvTokens,
    SampleTokens,
    SendActivations,
    SendTokens,
)
from hetero_infer.pipeline.schedules import DecodeSchedule, PrefillSchedule, Schedule
from hetero_infer.pipeline.simulate import Cost, Event, ScheduleError, Timeline, draw_grid, simulate
from hetero_infer.spec import Phase
from hetero_infer.spec.plan import micro_batch_ranges

GOLDEN = Path(__file__).parent.parent / "golden" / "schedules.txt"
Retired = Callable[[int], bool]


def schedules_of(
    batch: int,
    prefill_size: int,
    decode_size: int,
    stages: int,
    new_tokens: int,
    retired: Sequence[Retired] | None = None,
) -> list[list[Schedule]]:
    """Per stage; `retired[stage]` is what that stage knows."""
    prefill, decode = micro_batch_ranges(batch, prefill_size), micro_batch_ranges(batch, decode_size)
    retired = retired or [lambda micro_batch: False] * stages
    return [
        [
            PrefillSchedule(len(prefill), stages, stage),
            DecodeSchedule(prefill, decode, new_tokens - 1, stages, stage, retired[stage]),
        ]
        for stage in range(stages)
    ]


def no_time(stage: int, instruction: MicroBatchInstruction) -> float:
    return 0.0


def random_times(seed: int) -> Cost:
    """Any instruction may take long, short or no time, the same each time."""
    rng = random.Random(seed)
    seconds: dict[tuple[int, str, str], float] = {}

    def cost(stage: int, instruction: MicroBatchInstruction) -> float:
        key = (stage, instruction.name, instruction.label)
        return seconds.setdefault(key, rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 10))))

    return cost


def shapes() -> Iterable[tuple[int, int, int]]:
    for batch in range(1, 8):
        yield from itertools.product([batch], range(1, batch + 1), range(1, batch + 1))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("new_tokens", [1, 2, 3, 4, 5])
def test_every_send_has_its_receive_and_decode_waits_for_its_token(stages: int, new_tokens: int) -> None:
    for seed, (batch, prefill_size, decode_size) in enumerate(shapes()):
        cost = random_times(seed)
        timeline = simulate(schedules_of(batch, prefill_size, decode_size, stages, new_tokens), cost)
        assert_each_waits_for_its_token(timeline, batch, prefill_size, decode_size, stages, new_tokens, cost)


def assert_each_waits_for_its_token(
    timeline: Timeline, batch: int, prefill_size: int, decode_size: int, stages: int, new_tokens: int, cost: Cost
) -> None:
    """Told from the events alone: where sequence `i` was when, round by round."""
    ranges = {
        Phase.PREFILL: micro_batch_ranges(batch, prefill_size),
        Phase.DECODE: micro_batch_ranges(batch, decode_size),
    }

    def of_sequence(sequence: int, stage: int, *kinds: type[MicroBatchInstruction]) -> list[Event]:
        return [
            event
            for event in timeline.events
            if event.stage == stage
            and isinstance(event.instruction, kinds)
            and sequence in ranges[event.instruction.phase][event.instruction.micro_batch]
        ]

    for sequence in range(batch):
        loads = of_sequence(sequence, 0, LoadPrompts, LoadTokens)
        tokens = of_sequence(sequence, 0, RecvTokens)
        samples = of_sequence(sequence, stages - 1, SampleTokens)
        assert [len(loads), len(tokens), len(samples)] == [new_tokens] * 3
        for sample, token in zip(samples, tokens, strict=True):
            send = SendTokens(token.instruction.phase, token.instruction.micro_batch)
            assert token.end_s >= sample.end_s + cost(stages - 1, send)
        for token, load in zip(tokens, loads[1:], strict=False):
            assert load.start_s >= token.end_s
            assert timeline.events.index(load) > timeline.events.index(token)
        for stage in range(stages):
            forwards = of_sequence(sequence, stage, PrefillForward, DecodeForward)
            assert [type(event.instruction) for event in forwards] == [PrefillForward] + [DecodeForward] * (
                new_tokens - 1
            )


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_what_retires_early_stays_paired_and_is_not_worked_on_again(stages: int) -> None:
    rng = random.Random(stages)
    early = 0
    for batch, prefill_size, decode_size in shapes():
        new_tokens = rng.randint(2, 6)
        micro_batches = len(micro_batch_ranges(batch, decode_size))
        # Rounds with an unfinished sequence in them; 0 if all finished with the prompt's token.
        live_rounds = [rng.randint(0, new_tokens - 1) for _ in range(micro_batches)]
        known: list[set[int]] = [set() for _ in range(stages)]
        rounds: dict[tuple[int, int], int] = {}

        def cost(
            stage: int,
            instruction: MicroBatchInstruction,
            known: list[set[int]] = known,
            rounds: dict[tuple[int, int], int] = rounds,
            live_rounds: list[int] = live_rounds,
        ) -> float:
            """The first stage learns it when it finds no token to load, the others with the message of that."""
            micro_batch = instruction.micro_batch
            if isinstance(instruction, DecodeForward):
                assert micro_batch not in known[stage], f"stage {stage} works on {instruction} after it retired"
                rounds[stage, micro_batch] = rounds.get((stage, micro_batch), 0) + 1
                if rounds[stage, micro_batch] > live_rounds[micro_batch]:
                    known[stage].add(micro_batch)
            return 1.0 if isinstance(instruction, DecodeForward) else 0.1

        retired = [stage_knows.__contains__ for stage_knows in known]
        simulate(schedules_of(batch, prefill_size, decode_size, stages, new_tokens, retired), cost)
        expected = [min(live + 1, new_tokens - 1) for live in live_rounds]
        for stage in range(stages):
            assert [rounds.get((stage, index), 0) for index in range(micro_batches)] == expected
        early += sum(live + 1 < new_tokens - 1 for live in live_rounds)
    assert early > 50


def instructions_of(stages: int = 3) -> list[list[MicroBatchInstruction]]:
    """Of a batch of 4 in micro-batches of 2 with 3 new tokens."""
    return [
        [instruction for schedule in own for step in schedule for instruction in step]
        for own in schedules_of(4, 2, 2, stages, 3)
    ]


def run(programs: list[list[MicroBatchInstruction]]) -> Timeline:
    return simulate([[[program]] for program in programs], lambda stage, instruction: 1.0)


def position(program: list[MicroBatchInstruction], kind: type[MicroBatchInstruction], label: str) -> int:
    return next(i for i, entry in enumerate(program) if type(entry) is kind and entry.label == label)


def test_the_programs_that_are_broken_below_are_whole_before() -> None:
    run(instructions_of())


@pytest.mark.parametrize("label", ["P0", "P1", "D0", "D1"])
def test_a_send_that_is_left_out_is_found(label: str) -> None:
    programs = instructions_of()
    del programs[1][position(programs[1], SendActivations, label)]
    with pytest.raises(ScheduleError, match=r"stage 2 waits for|deadlock: .*stage 2 at RecvActivations"):
        run(programs)


def test_a_last_send_that_is_left_out_is_a_deadlock_and_its_grid_is_shown() -> None:
    programs = instructions_of()
    del programs[2][-1]  # the last token's way back
    with pytest.raises(ScheduleError) as error:
        run(programs)
    line, *grid = str(error.value).splitlines()
    assert line.startswith("deadlock: stage 0 at RecvTokens(") and "micro_batch=1" in line
    assert grid[0].split() == ["time", "stage", "0", "stage", "1", "stage", "2"]
    assert grid[1].split()[:2] == ["0", "P0"] and "D1" in grid[-1]


def test_two_stages_that_wait_for_each_other_are_a_deadlock() -> None:
    phase = Phase.DECODE
    with pytest.raises(ScheduleError, match=r"deadlock: stage 0 at RecvTokens.*, stage 1 at RecvActivations"):
        run([[RecvTokens(phase, 0), SendActivations(phase, 0)], [RecvActivations(phase, 0), SendTokens(phase, 0)]])


@pytest.mark.parametrize(
    ("stage", "kind", "first", "second", "named"),
    [
        (0, SendActivations, "P0", "P1", "stage 1 waits for P0 and is sent P1 by stage 0"),
        (1, RecvActivations, "D0", "D1", "stage 1 waits for D1 and is sent D0 by stage 0"),
        (2, SendTokens, "P0", "P1", "stage 0 waits for P0 and is sent P1 by stage 2"),
    ],
)
def test_a_swapped_order_is_found(
    stage: int, kind: type[MicroBatchInstruction], first: str, second: str, named: str
) -> None:
    programs = instructions_of()
    one, other = (position(programs[stage], kind, label) for label in (first, second))
    programs[stage][one], programs[stage][other] = programs[stage][other], programs[stage][one]
    with pytest.raises(ScheduleError, match=named):
        run(programs)


def test_a_receive_that_is_left_out_is_found() -> None:
    programs = instructions_of()
    del programs[0][-1]
    with pytest.raises(ScheduleError, match="stage 2 sends D1 and stage 0 never receives it"):
        run(programs)


def test_a_phase_taken_for_the_other_is_found() -> None:
    programs = instructions_of()
    programs[1][position(programs[1], RecvActivations, "D0")] = RecvActivations(Phase.PREFILL, 0)
    with pytest.raises(ScheduleError, match="stage 1 waits for P0 and is sent D0"):
        run(programs)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_is_made_when_it_comes_up_and_not_before(stage: int) -> None:
    asked: list[int] = []

    def retired(micro_batch: int) -> bool:
        asked.append(micro_batch)
        return False

    ranges = micro_batch_ranges(3, 1)
    steps = iter(DecodeSchedule(ranges, ranges, 10**12, 3, stage, retired))  # a list of its steps would fill memory
    assert asked == []
    for micro_batch in (0, 1, 2, 0):
        next(steps)
        assert set(asked) <= {micro_batch}
        asked.clear()


@pytest.mark.parametrize("stage", [0, 1])
def test_what_a_step_learns_changes_the_next(stage: int) -> None:
    retired: set[int] = set()
    ranges = micro_batch_ranges(2, 1)
    steps = iter(DecodeSchedule(ranges, ranges, 10**12, 2, stage, retired.__contains__))
    assert {next(steps)[-1].label, next(steps)[-1].label} == {"D0", "D1"}
    retired.add(0)
    later = [next(steps), next(steps)]
    assert [step[-1].label for step in later] == ["D1", "D1"]
    if stage == 0:  # the message that said so comes back once, without tokens
        taken = [[entry.label for entry in step if isinstance(entry, RecvTokens)] for step in later]
        assert taken == [["D0", "D1"], ["D1"]]


def test_a_barrier_may_stand_between_steps() -> None:
    """A receive's send is in a step of no higher number, whatever the stages: the docstring's promise."""
    for batch, prefill_size, decode_size in shapes():
        programs = schedules_of(batch, prefill_size, decode_size, 3, 3)
        for part in (0, 1):
            sent: dict[tuple[type, str], list[int]] = {}
            received: dict[tuple[type, str], list[int]] = {}
            for stage, schedules in enumerate(programs):
                for number, step in enumerate(schedules[part]):
                    for entry in step:
                        if isinstance(entry, SendActivations | RecvActivations):
                            side = sent if isinstance(entry, SendActivations) else received
                            link = stage if isinstance(entry, SendActivations) else stage - 1
                            side.setdefault((link, entry.label), []).append(number)
            assert sent.keys() == received.keys()
            for key, numbers in received.items():
                assert all(send <= number for send, number in zip(sent[key], numbers, strict=True))


def test_the_drawing_of_both_schedules_is_the_golden_one() -> None:
    """Three stages, a batch of 6: two prefill micro-batches of 2 s a stage, three decode ones of 1 s."""
    forwards = {PrefillForward: 2.0, DecodeForward: 1.0}
    schedules = schedules_of(6, 3, 2, 3, 4)
    timeline = simulate(schedules, lambda stage, instruction: forwards.get(type(instruction), 0.0))
    drawn = draw_grid(timeline, 3) + "\n\n"
    for stage, own in enumerate(schedules_of(6, 3, 2, 3, 3)):
        drawn += f"stage {stage}\n"
        for name, schedule in zip(("prefill", "decode"), own, strict=True):
            steps = [" ".join(f"{entry.name}:{entry.label}" for entry in step) for step in schedule]
            drawn += "".join(f"  {name} {number}  {step}".rstrip() + "\n" for number, step in enumerate(steps))
    if not GOLDEN.exists():  # delete it to draw it anew, and look at it before you keep it
        GOLDEN.write_text(drawn)
        pytest.fail(f"{GOLDEN} was missing and has been drawn")
    assert drawn == GOLDEN.read_text()

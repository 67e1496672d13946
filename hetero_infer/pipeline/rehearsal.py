"""A plan's own schedules under a plan's own costs: the dry run that the recurrence must equal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from hetero_infer.cost.timeline import StationCosts
from hetero_infer.pipeline.instructions import (
    DecodeForward,
    MicroBatchInstruction,
    PrefillForward,
    SendActivations,
    SendTokens,
)
from hetero_infer.pipeline.schedules import DecodeSchedule, PrefillSchedule, Schedule
from hetero_infer.pipeline.simulate import Timeline, simulate
from hetero_infer.pipeline.trace import Span
from hetero_infer.spec import Phase, Plan
from hetero_infer.spec.plan import micro_batch_ranges


def plan_schedules(plan: Plan) -> list[list[Schedule]]:
    """Per stage, the schedules of one full batch."""
    stages = len(plan.stages)
    prefill_ranges, decode_ranges = _ranges(plan).values()
    rounds = plan.workload.new_tokens - 1
    return [
        [
            PrefillSchedule(len(prefill_ranges), stages, stage),
            DecodeSchedule(prefill_ranges, decode_ranges, rounds, stages, stage),
        ]
        for stage in range(stages)
    ]


def rehearse(costs: StationCosts, plan: Plan) -> Timeline:
    """Simulate one full batch, instruction by instruction, with a past that grows by one each round."""
    ranges = _ranges(plan)
    rounds_done: dict[tuple[int, int], int] = {}

    def cost(stage: int, instruction: MicroBatchInstruction) -> float:
        phase, size = instruction.phase, len(ranges[instruction.phase][instruction.micro_batch])
        if isinstance(instruction, PrefillForward):
            return costs.compute_s(stage, phase, size, 0)
        if isinstance(instruction, DecodeForward):
            done = rounds_done.get((stage, instruction.micro_batch), 0)
            rounds_done[stage, instruction.micro_batch] = done + 1
            return costs.compute_s(stage, phase, size, plan.workload.prompt_tokens + done)
        if isinstance(instruction, SendActivations):
            return costs.send_s(stage, phase, size)
        if isinstance(instruction, SendTokens) and costs.num_stages > 1:
            return costs.return_s(phase, size)
        return 0.0

    return simulate(plan_schedules(plan), cost)


def station_spans(timeline: Timeline, plan: Plan, stage_labels: Sequence[str]) -> Iterator[Span]:
    """What each station of a rehearsal works on: stages by their labels, then links, then the return."""
    last, ranges = len(plan.stages) - 1, _ranges(plan)
    rounds_done: Counter[tuple[str, int]] = Counter()
    forwards = (event for event in timeline.events if isinstance(event.instruction, PrefillForward | DecodeForward))
    for event in (*forwards, *timeline.transfers):
        instruction, stage = event.instruction, event.stage
        if isinstance(instruction, PrefillForward | DecodeForward):
            track = f"stage {stage}: {stage_labels[stage]}"
        elif isinstance(instruction, SendActivations):
            track = f"link {stage} to {stage + 1}"
        elif last:
            track = f"return {last} to 0"
        else:
            continue  # the only stage keeps its tokens
        facts = {
            "micro_batch": instruction.micro_batch,
            "sequences": len(ranges[instruction.phase][instruction.micro_batch]),
        }
        if instruction.phase is Phase.DECODE:
            facts["past_tokens"] = plan.workload.prompt_tokens + rounds_done[track, instruction.micro_batch]
            rounds_done[track, instruction.micro_batch] += 1
        yield Span(track, instruction.label, instruction.phase, event.start_s, event.end_s, facts)


def _ranges(plan: Plan) -> dict[Phase, tuple[range, ...]]:
    batch = plan.workload.batch_size
    return {
        Phase.PREFILL: micro_batch_ranges(batch, plan.prefill_micro_batch_size),
        Phase.DECODE: micro_batch_ranges(batch, plan.decode_micro_batch_size),
    }

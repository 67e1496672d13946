"""A plan's own schedules under a plan's own costs: the dry run that the recurrence must equal."""

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
from hetero_infer.spec import Phase, Plan
from hetero_infer.spec.plan import micro_batch_ranges


def plan_schedules(plan: Plan) -> list[list[Schedule]]:
    """Per stage, the schedules of one full batch."""
    batch, stages = plan.workload.batch_size, len(plan.stages)
    prefill_ranges = micro_batch_ranges(batch, plan.prefill_micro_batch_size)
    decode_ranges = micro_batch_ranges(batch, plan.decode_micro_batch_size)
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
    batch = plan.workload.batch_size
    ranges = {
        Phase.PREFILL: micro_batch_ranges(batch, plan.prefill_micro_batch_size),
        Phase.DECODE: micro_batch_ranges(batch, plan.decode_micro_batch_size),
    }
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

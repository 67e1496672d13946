"""The closed form is the recurrence where it may be, and the recurrence is right by hand where it may not."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from hetero_infer.bench.planner.schedules import RandomCosts
from hetero_infer.cost.timeline import (
    PhaseCosts,
    Stations,
    decode_seconds,
    prefill_seconds,
    recurrence,
    recurrence_of,
    station_seconds,
)
from hetero_infer.pipeline.instructions import (
    DecodeForward,
    MicroBatchInstruction,
    PrefillForward,
    SendActivations,
    SendTokens,
)
from hetero_infer.pipeline.schedules import DecodeSchedule, PrefillSchedule
from hetero_infer.pipeline.simulate import Timeline, simulate
from hetero_infer.spec import Phase, Workload
from hetero_infer.spec.plan import micro_batch_ranges
from hetero_infer.spec.requests import RequestLengths


@dataclass(frozen=True)
class ConstantCosts:
    """The same seconds for every micro-batch of a phase."""

    compute: dict[Phase, Sequence[float]]
    send: dict[Phase, Sequence[float]]
    back: dict[Phase, float]

    @property
    def num_stages(self) -> int:
        return len(self.compute[Phase.PREFILL])

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
        return self.compute[phase][stage]

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        return self.send[phase][stage]

    def return_s(self, phase: Phase, batch: int) -> float:
        return self.back[phase]

    def of_phase(self, phase: Phase, micro_batches: int) -> PhaseCosts:
        back = self.back[phase] if self.num_stages > 1 else 0.0
        return PhaseCosts(self.compute[phase], self.send[phase], back, micro_batches)


def random_costs(rng: random.Random, num_stages: int) -> ConstantCosts:
    def some(count: int) -> list[float]:
        return [rng.choice((rng.uniform(0, 1), rng.uniform(0, 10))) for _ in range(count)]

    return ConstantCosts(
        {phase: some(num_stages) for phase in Phase},
        {phase: some(num_stages - 1) for phase in Phase},
        {phase: some(1)[0] for phase in Phase},
    )


def test_the_closed_form_is_the_recurrence_for_constant_costs_equal_sizes_and_a_barrier() -> None:
    rng = random.Random(1)
    token_bound = station_bound = 0
    for _ in range(2000):
        costs = random_costs(rng, rng.randint(1, 5))
        mp, md, new_tokens = rng.randint(1, 6), rng.randint(1, 6), rng.choice((1, 2, 3, 4, 9))
        workload = Workload(mp * md, 8, new_tokens)
        exact = recurrence(costs, workload, md, mp, barrier=True)
        prefill, decode = costs.of_phase(Phase.PREFILL, mp), costs.of_phase(Phase.DECODE, md)
        assert exact.prefill_s == pytest.approx(prefill_seconds(prefill), rel=1e-12)
        assert exact.total_s == pytest.approx(prefill_seconds(prefill) + decode_seconds(decode, new_tokens), rel=1e-12)
        token_bound += md * decode.slowest_s < decode.pass_s
        station_bound += md * decode.slowest_s > decode.pass_s
    assert min(token_bound, station_bound) > 400


def test_without_a_barrier_nothing_is_slower() -> None:
    rng = random.Random(2)
    for _ in range(500):
        costs = random_costs(rng, rng.randint(1, 4))
        workload = Workload(rng.randint(1, 9), 8, rng.randint(1, 6))
        sizes = rng.choice(workload.micro_batch_sizes), rng.choice(workload.micro_batch_sizes)
        free, held = recurrence(costs, workload, *sizes), recurrence(costs, workload, *sizes, barrier=True)
        assert free.prefill_s == held.prefill_s
        assert free.total_s <= held.total_s * (1 + 1e-12)


def test_decode_waits_for_the_tokens_of_all_its_sequences() -> None:
    # Two stages; prefill compute 3 and 1, decode 1 and 1, wires 0.5 except the decode return of 1.
    costs = ConstantCosts(
        {Phase.PREFILL: (3, 1), Phase.DECODE: (1, 1)},
        {Phase.PREFILL: (0.5,), Phase.DECODE: (0.5,)},
        {Phase.PREFILL: 0.5, Phase.DECODE: 1},
    )
    # Three prefills of one sequence: tokens back at 5, 8, 11. Decode micro-batch {0, 1} has them at 8 but stage 0 is
    # busy with the third prompt until 9: 9-10 compute, sent 10.5, 11.5 out of stage 1, back at 12.5.
    # {2} waits for its token: 11-12, 12.5, 13.5, 14.5.
    assert recurrence(costs, Workload(3, 8, 2), 1, 2).total_s == 14.5
    assert recurrence(costs, Workload(2, 8, 2), 1, 2).total_s == 8 + 3.5  # both tokens back at 8, not at 5


def test_one_new_token_needs_no_decode() -> None:
    costs = random_costs(random.Random(3), 3)
    assert recurrence(costs, Workload(4, 8, 1), 2, 2).decode_s == 0
    assert decode_seconds(costs.of_phase(Phase.DECODE, 2), 1) == 0


def test_the_recurrence_sees_remainders_and_a_growing_past() -> None:
    seen = []

    class Recording(ConstantCosts):
        def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
            seen.append((phase, batch, past_tokens))
            return float(batch)

    costs = Recording({phase: (0.0,) for phase in Phase}, {phase: () for phase in Phase}, dict.fromkeys(Phase, 9.0))
    makespan = recurrence(costs, Workload(5, 8, 3), 3, 2)
    assert [s for s in seen if s[0] is Phase.PREFILL] == [(Phase.PREFILL, 3, 0), (Phase.PREFILL, 2, 0)]
    assert {s for s in seen if s[0] is Phase.DECODE} == {(Phase.DECODE, b, past) for b in (1, 2) for past in (8, 9)}
    assert (makespan.prefill_s, makespan.decode_s) == (5, 10)  # one stage: its work, and no return


def test_a_batch_of_real_lengths_is_the_dry_run_of_its_schedules() -> None:
    """Micro-batches shrink, and those without sequences retire, as the engine's do."""
    rng = random.Random(4)
    retirements = 0
    for seed in range(150):
        costs = RandomCosts(seed, rng.randint(1, 5))
        requests = [RequestLengths(rng.randint(1, 50), rng.choice((1, 2, 5, 9))) for _ in range(rng.randint(1, 9))]
        sizes = rng.randint(1, len(requests)), rng.randint(1, len(requests))
        timeline, retired = dry_run(costs, requests, *sizes)
        exact = recurrence_of(of_lengths(costs), requests, *sizes)
        assert timeline.makespan_s == pytest.approx(exact.total_s, rel=1e-9), (seed, requests, sizes)
        retirements += len(retired)
    assert retirements > 100


def of_lengths(costs: RandomCosts) -> Stations:
    """Prompts count as a past does; an empty message takes no compute."""

    def stations(phase: Phase, sequences: int, tokens: int) -> list[float]:
        seconds = station_seconds(costs, phase, sequences, tokens)
        if not sequences:
            seconds[:-1:2] = [0.0] * costs.num_stages
        return seconds

    return stations


def dry_run(
    costs: RandomCosts, requests: list[RequestLengths], prefill_size: int, decode_size: int
) -> tuple[Timeline, set[int]]:
    """The schedules with a `retired` for each stage, as `HeteroPipelineEngine` keeps it."""
    stages, last = range(costs.num_stages), costs.num_stages - 1
    ranges = {
        Phase.PREFILL: micro_batch_ranges(len(requests), prefill_size),
        Phase.DECODE: micro_batch_ranges(len(requests), decode_size),
    }
    retired: list[set[int]] = [set() for _ in stages]
    begun: Counter[tuple[int, int]] = Counter()

    def seconds(stage: int, instruction: MicroBatchInstruction) -> float:
        phase, index = instruction.phase, instruction.micro_batch
        members = [requests[sequence] for sequence in ranges[phase][index]]
        tokens = -(-sum(request.prompt_tokens for request in members) // len(members))
        if phase is Phase.DECODE:
            begun[stage, index] += isinstance(instruction, DecodeForward)
            step = begun[stage, index] - 1
            members = [request for request in members if request.new_tokens > step + 1]
            tokens = max((request.prompt_tokens for request in members), default=0) + step
            if not members:
                retired[stage].add(index)
        by_station = of_lengths(costs)(phase, len(members), tokens)
        if isinstance(instruction, PrefillForward | DecodeForward):
            return by_station[2 * stage]
        if isinstance(instruction, SendActivations):
            return by_station[2 * stage + 1]
        return by_station[-1] if isinstance(instruction, SendTokens) and last else 0.0

    rounds = max(request.new_tokens for request in requests) - 1
    schedules = [
        [
            PrefillSchedule(len(ranges[Phase.PREFILL]), costs.num_stages, stage),
            DecodeSchedule(*ranges.values(), rounds, costs.num_stages, stage, retired[stage].__contains__),
        ]
        for stage in stages
    ]
    return simulate(schedules, seconds), retired[last]

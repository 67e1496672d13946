"""The dry run of a plan's own schedules takes exactly as long as the recurrence says, and as the closed form does."""

import random
from dataclasses import dataclass

import pytest

from hetero_infer.cost.timeline import PhaseCosts, decode_seconds, prefill_seconds, recurrence
from hetero_infer.pipeline.rehearsal import rehearse
from hetero_infer.spec import UNQUANTISED, Device, Phase, Plan, StagePlan, Workload
from hetero_infer.spec.plan import num_micro_batches


def plan_of(stages: int, workload: Workload, prefill_size: int, decode_size: int) -> Plan:
    devices = tuple(Device("localhost", slot, "cpu", 2**30) for slot in range(stages))
    return Plan(
        model={"num_hidden_layers": stages},
        devices=devices,
        workload=workload,
        stages=tuple(
            StagePlan(device.name, (UNQUANTISED,) * (1 + (stage == 0) + (stage == stages - 1)))
            for stage, device in enumerate(devices)
        ),
        prefill_micro_batch_size=prefill_size,
        decode_micro_batch_size=decode_size,
    )


@dataclass(frozen=True)
class RandomCosts:
    """Any station may be the slowest. With `growing`, seconds grow with the micro-batch and with the past."""

    seed: int
    num_stages: int
    growing: bool

    def _seconds(self, station: str, batch: int, past_tokens: int = 0) -> float:
        rng = random.Random(f"{self.seed} {station}")
        fixed = rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 10)))
        if not self.growing:
            return fixed
        return fixed + batch * (rng.uniform(0, 2) + past_tokens * rng.choice((0.0, rng.uniform(0, 0.2))))

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
        return self._seconds(f"compute {stage} {phase}", batch, past_tokens)

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        assert stage + 1 < self.num_stages
        return self._seconds(f"send {stage} {phase}", batch)

    def return_s(self, phase: Phase, batch: int) -> float:
        assert self.num_stages > 1, "one stage returns its tokens to itself; the protocol says this is not asked"
        return self._seconds(f"return {phase}", batch)

    def of_phase(self, phase: Phase, micro_batches: int) -> PhaseCosts:
        stages = range(self.num_stages)
        return PhaseCosts(
            [self.compute_s(stage, phase, 1, 0) for stage in stages],
            [self.send_s(stage, phase, 1) for stage in stages[:-1]],
            self.return_s(phase, 1) if self.num_stages > 1 else 0.0,
            micro_batches,
        )


def test_the_dry_run_is_the_recurrence() -> None:
    """Growing costs, links, remainders, any two sizes of micro-batches."""
    rng = random.Random(0)
    with_remainder = different_borders = 0
    for seed in range(400):
        workload = Workload(rng.randint(1, 9), rng.choice((4, 30)), rng.choice((1, 2, 3, 8)))
        sizes = rng.randint(1, workload.batch_size), rng.randint(1, workload.batch_size)
        costs = RandomCosts(seed, rng.randint(1, 4), growing=True)
        timeline = rehearse(costs, plan_of(costs.num_stages, workload, *sizes))
        exact = recurrence(costs, workload, *sizes)
        assert timeline.makespan_s == pytest.approx(exact.total_s, rel=1e-9), (seed, workload, sizes)
        with_remainder += any(workload.batch_size % size for size in sizes)
        different_borders += sizes[0] != sizes[1]
    assert min(with_remainder, different_borders) > 150


@pytest.mark.parametrize("one_micro_batch_of", list(Phase))
def test_the_dry_run_is_the_closed_form_where_a_barrier_would_change_nothing(one_micro_batch_of: Phase) -> None:
    """With one prefill micro-batch, or one decode micro-batch, decode begins when all prompts are done anyway."""
    rng = random.Random(1)
    token_bound = station_bound = 0
    for seed in range(300):
        many, size = rng.randint(1, 6), rng.randint(1, 3)
        workload = Workload(many * size, 8, rng.choice((1, 2, 3, 4, 9)))
        sizes = {Phase.PREFILL: size, Phase.DECODE: size} | {one_micro_batch_of: many * size}
        costs = RandomCosts(seed, rng.randint(1, 5), growing=False)
        prefill, decode = (
            costs.of_phase(phase, num_micro_batches(workload.batch_size, sizes[phase])) for phase in sizes
        )
        timeline = rehearse(costs, plan_of(costs.num_stages, workload, *sizes.values()))
        closed_s = prefill_seconds(prefill) + decode_seconds(decode, workload.new_tokens)
        assert timeline.makespan_s == pytest.approx(closed_s, rel=1e-12)
        token_bound += decode.micro_batches * decode.slowest_s < decode.pass_s
        station_bound += decode.micro_batches * decode.slowest_s > decode.pass_s
    if one_micro_batch_of is Phase.PREFILL:
        assert min(token_bound, station_bound) > 50
    else:
        assert token_bound > 50


def test_a_rehearsal_by_hand() -> None:
    """Two stages, two sequences one by one, three tokens; compute 2 and 1 s, 0.5 s for every message."""

    class Costs:
        num_stages = 2

        def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
            return 2.0 - stage

        def send_s(self, stage: int, phase: Phase, batch: int) -> float:
            return 0.5

        def return_s(self, phase: Phase, batch: int) -> float:
            return 0.5

    timeline = rehearse(Costs(), plan_of(2, Workload(2, 8, 3), 1, 1))
    # The first stage is never idle: P0 0-2, P1 2-4, D0 4-6, D1 6-8, D0 8-10, D1 10-12; then 0.5 + 1 + 0.5 to the end.
    # P0's token is back at 4.0, in time for D0.
    assert timeline.makespan_s == 14.0

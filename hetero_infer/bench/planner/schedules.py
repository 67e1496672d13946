"""The judges agree: the event simulation of random schedules, the recurrence, and where it holds the closed form."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hetero_infer.bench.section import Demand, Section
from hetero_infer.cost.timeline import PhaseCosts, decode_seconds, prefill_seconds, recurrence
from hetero_infer.pipeline.rehearsal import rehearse
from hetero_infer.spec import UNQUANTISED, Device, Phase, Plan, StagePlan, Workload
from hetero_infer.spec.plan import num_micro_batches

SEED, COUNT = 20261124, 1500  # of each kind
AGREES = 1e-9


@dataclass(frozen=True)
class RandomCosts:
    """Any station may be the slowest. `growing` seconds grow with the micro-batch and with the past."""

    seed: int
    num_stages: int
    growing: bool = True

    @cached_property
    def _coefficients(self) -> dict[tuple[str, int, Phase], tuple[float, float, float]]:
        rng = random.Random(self.seed)
        stations = [("compute", stage) for stage in range(self.num_stages)]
        stations += [("send", stage) for stage in range(self.num_stages - 1)] + [("return", 0)]
        slow_wires = rng.choice((0.05, 1.0, 5.0))
        return {
            (kind, stage, phase): (
                rng.choice((0.0, rng.uniform(0, 1), rng.uniform(0, 10))) * (1 if kind == "compute" else slow_wires),
                rng.uniform(0, 2) * self.growing,
                rng.choice((0.0, rng.uniform(0, 0.2))) * self.growing * (kind == "compute"),
            )
            for kind, stage in stations
            for phase in Phase
        }

    def _seconds(self, station: tuple[str, int, Phase], batch: int, past_tokens: int = 0) -> float:
        fixed, per_sequence, per_past = self._coefficients[station]
        return fixed + batch * (per_sequence + past_tokens * per_past)

    def compute_s(self, stage: int, phase: Phase, batch: int, past_tokens: int) -> float:
        return self._seconds(("compute", stage, phase), batch, past_tokens)

    def send_s(self, stage: int, phase: Phase, batch: int) -> float:
        return self._seconds(("send", stage, phase), batch)

    def return_s(self, phase: Phase, batch: int) -> float:
        return self._seconds(("return", 0, phase), batch)

    def of_phase(self, phase: Phase, micro_batches: int) -> PhaseCosts:
        """Of constant costs."""
        return PhaseCosts(
            [self.compute_s(stage, phase, 1, 0) for stage in range(self.num_stages)],
            [self.send_s(stage, phase, 1) for stage in range(self.num_stages - 1)],
            self.return_s(phase, 1) if self.num_stages > 1 else 0.0,
            micro_batches,
        )


@dataclass(frozen=True)
class Case:
    """Micro-batches of `prefill_size` and `decode_size` sequences over a random ring."""

    costs: RandomCosts
    workload: Workload
    prefill_size: int
    decode_size: int

    @property
    def traits(self) -> set[str]:
        """What makes it hard."""
        sizes, batch = (self.prefill_size, self.decode_size), self.workload.batch_size
        found = {
            "remainders": any(batch % size for size in sizes),
            "η and ξ with other borders": any(a % b for a, b in (sizes, sizes[::-1])) and batch > max(sizes),
            "one stage": self.costs.num_stages == 1,
            "one sequence": batch == 1,
            "one token": self.workload.new_tokens == 1,
        }
        return {trait for trait, holds in found.items() if holds}

    def simulated_s(self) -> float:
        plan = plan_of(self.costs.num_stages, self.workload, self.prefill_size, self.decode_size)
        return rehearse(self.costs, plan).makespan_s

    def recurrence_s(self, *, barrier: bool = False) -> float:
        return recurrence(self.costs, self.workload, self.prefill_size, self.decode_size, barrier=barrier).total_s

    def closed_form_s(self) -> float:
        batch = self.workload.batch_size
        prefill = self.costs.of_phase(Phase.PREFILL, num_micro_batches(batch, self.prefill_size))
        decode = self.costs.of_phase(Phase.DECODE, num_micro_batches(batch, self.decode_size))
        return prefill_seconds(prefill) + decode_seconds(decode, self.workload.new_tokens)


def plan_of(stages: int, workload: Workload, prefill_size: int, decode_size: int) -> Plan:
    """With a layer on each stage; only its schedules matter."""
    devices = tuple(Device("localhost", slot, "cpu", 2**30) for slot in range(stages))
    layers = [(UNQUANTISED,) * (1 + (stage == 0) + (stage == stages - 1)) for stage in range(stages)]
    return Plan(
        model={"num_hidden_layers": stages},
        devices=devices,
        workload=workload,
        stages=tuple(StagePlan(device.name, there) for device, there in zip(devices, layers, strict=True)),
        prefill_micro_batch_size=prefill_size,
        decode_micro_batch_size=decode_size,
    )


def random_case(seed: int) -> Case:
    """1 to 8 stages, any two sizes of micro-batches, seconds that grow, links that may be the slowest station."""
    rng = random.Random(seed)
    workload = Workload(rng.choice((1, rng.randint(2, 12), rng.randint(13, 40))), 64, rng.choice((1, 2, 3, 8, 20)))
    sizes = rng.randint(1, workload.batch_size), rng.randint(1, workload.batch_size)
    return Case(RandomCosts(seed, rng.randint(1, 8)), workload, *sizes)


def constant_case(seed: int) -> Case:
    """Constant costs and equal sizes."""
    rng = random.Random(seed)
    mp, md = rng.randint(1, 6), rng.randint(1, 6)
    return Case(
        RandomCosts(seed, rng.randint(1, 8), growing=False),
        Workload(mp * md, 64, rng.choice((1, 2, 3, 8, 20))),
        prefill_size=md,
        decode_size=mp,
    )


def without_barrier(case: Case) -> Case:
    """The same with one prefill micro-batch: decode then begins after all prompts, barrier or not."""
    return replace(case, prefill_size=case.workload.batch_size)


def measure(shared: Path) -> Section:
    """Nothing of `shared` is needed."""
    seeds = range(SEED, SEED + COUNT)
    cases, constant = [random_case(seed) for seed in seeds], [constant_case(seed) for seed in seeds]
    compared = {
        "simulation = recurrence": [(case.simulated_s(), case.recurrence_s()) for case in cases],
        "recurrence with a barrier = closed form, constant costs, equal sizes": [
            (case.recurrence_s(barrier=True), case.closed_form_s()) for case in constant
        ],
        "simulation = closed form, the same with one prefill micro-batch": [
            (case.simulated_s(), case.closed_form_s()) for case in map(without_barrier, constant)
        ],
    }
    worst = {what: max(abs(a / b - 1) if b else a for a, b in pairs) for what, pairs in compared.items()}
    traits = Counter(trait for case in cases for trait in case.traits)
    return Section(
        title="The judges agree on random schedules",
        header=("compared", "schedules", "worst relative difference"),
        rows=[(what, str(len(compared[what])), f"{off:.1e}") for what, off in worst.items()],
        demands=[
            Demand(f"{what}: {off:.1e} at most, {AGREES:.0e} allowed", off <= AGREES) for what, off in worst.items()
        ],
        notes=[
            f"seeds from {SEED}; among the schedules of the first row: "
            + ", ".join(f"{count} with {trait}" for trait, count in traits.most_common())
        ],
        facts=[{"compared": what, "schedules": COUNT, "seed": SEED, "worst": off} for what, off in worst.items()],
    )

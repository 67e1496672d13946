"""The front of tokens/s, quality and devices: plans of which no other is at least as good in all three.

Swept are the quality limit, from the least loss that is found to fit to none at all, and the cluster: all devices,
then without the slowest kind, one kind after the other. Within each the planner picks devices as it likes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hetero_infer.planner.answers.changes import NOTICEABLE
from hetero_infer.planner.feasible import least_loss_plan
from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

STEPS = 6  # quality limits between the least loss and none
LARGEST_LOSS = 50.0  # nats: what a plan states of a limit beyond it
SMALLEST_LOSS = 1e-3  # of the largest: where the ladder starts if the least is nothing


@dataclass(frozen=True)
class ParetoPoint:
    plan: Plan

    @property
    def tokens_per_s(self) -> float:
        assert self.plan.estimate
        return self.plan.estimate.tokens_per_s

    @property
    def loss(self) -> float:
        """Σω, in the sensitivity's unit."""
        assert self.plan.quality
        return self.plan.quality.predicted

    @property
    def perplexity_increase(self) -> float:
        return math.expm1(self.loss)

    @property
    def num_devices(self) -> int:
        return len(self.plan.stages)

    @property
    def gap(self) -> float:
        assert self.plan.solver
        return self.plan.solver.gap

    def is_beaten_by(self, other: "ParetoPoint") -> bool:
        """By one at least as good in all three and better in one; tokens/s count where one would notice."""
        faster = other.tokens_per_s / self.tokens_per_s - 1
        if faster < -NOTICEABLE or other.loss > self.loss or other.num_devices > self.num_devices:
            return False
        return faster > NOTICEABLE or other.loss < self.loss or other.num_devices < self.num_devices

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens_per_s": self.tokens_per_s,
            "loss": self.loss,
            "perplexity_increase": self.perplexity_increase,
            "devices": [stage.device for stage in self.plan.stages],
            "gap": self.gap,
        }


@dataclass(frozen=True)
class Front:
    """Points from the fastest to the slowest; of `asked` plans `undecided` found none in their time."""

    points: Sequence[ParetoPoint]
    asked: int
    undecided: int

    def to_json(self) -> dict[str, Any]:
        points = [point.to_json() for point in self.points]
        return {"points": points, "asked": self.asked, "undecided": self.undecided}

    @property
    def sentence(self) -> str:
        late = f"; {self.undecided} found no plan in their time" if self.undecided else ""
        return f"{len(self.points)} of {self.asked} plans that were asked for{late}"


def pareto_front(request: PlanRequest, plan: Plan, *, each_s: float, gap: float) -> Front:
    """`plan` is the one that is there for the request; `each_s` is the time limit of each other."""
    outcomes = [plan, *(outcome for smaller in _shrinking(request) for outcome in _swept(smaller, each_s, gap))]
    points = nondominated([ParetoPoint(plan) for plan in outcomes if isinstance(plan, Plan)])
    undecided = sum(isinstance(outcome, NoPlan) and not outcome.is_proven for outcome in outcomes)
    return Front(points, len(outcomes), undecided)


def nondominated(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """One of each kind that no other beats, the fastest first."""
    distinct = {(p.tokens_per_s, p.loss, p.num_devices): p for p in points}.values()
    front = [point for point in distinct if not any(point.is_beaten_by(other) for other in distinct)]
    return sorted(front, key=lambda point: (-point.tokens_per_s, point.loss))


def _swept(request: PlanRequest, each_s: float, gap: float) -> Iterator[Plan | NoPlan]:
    """Without a limit, then at equal factors from the worst loss down to the least that is found to fit."""

    def at(limit: float) -> Plan | NoPlan:
        limited = replace(request, omega_limit=limit, max_perplexity_increase=math.expm1(min(limit, LARGEST_LOSS)))
        return plan_or_why(limited, time_limit_s=each_s, gap=gap)

    if request.model.stored_choices:  # its bits are what they are
        yield at(request.omega_limit)
        return
    yield (fastest := at(math.inf))
    least = least_loss_plan(request)
    if least is None or least.quality is None:
        return
    worst = sum(max(row) for row in request.sensitivity.omega)
    most = fastest.quality.predicted if isinstance(fastest, Plan) and fastest.quality else worst
    low = max(least.quality.predicted, SMALLEST_LOSS * most)
    if low < most:
        yield from (at(most * (low / most) ** (step / STEPS)) for step in range(1, STEPS))
        yield at(least.quality.predicted)


def _shrinking(request: PlanRequest) -> Iterator[PlanRequest]:
    """The request, then without its slowest kind of device, and so on down to one kind."""
    devices = request.cluster.devices
    by_speed = sorted(
        {_kind(device): _layer_s(request, device) for device in devices}.items(), key=lambda item: -item[1]
    )
    for dropped in range(len(by_speed)):
        gone = {kind for kind, _ in by_speed[:dropped]}
        kept = tuple(device for device in devices if _kind(device) not in gone)
        yield replace(request, cluster=replace(request.cluster, devices=kept))


def _kind(device: Device) -> tuple[str, int, float]:
    return device.timed_as, device.memory_bytes, device.slowdown


def _layer_s(request: PlanRequest, device: Device) -> float:
    """Seconds of a decoder layer for the whole batch, all tokens, at its quickest choice."""
    workload, seconds = request.workload, request.latency.layer_seconds
    batch, prompt, steps = workload.batch_size, workload.prompt_tokens, workload.new_tokens - 1
    return min(
        seconds(device, "decoder", choice, Phase.PREFILL, batch, prompt, 0)
        + steps * seconds(device, "decoder", choice, Phase.DECODE, batch, 1, prompt)
        for choice in request.latency.allowed_choices(device, request.choices)
    )

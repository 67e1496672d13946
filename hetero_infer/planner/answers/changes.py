"""What changing one thing in a plan would need of a device's memory, and what it would give.

A change is made to the plan and the changed plan is costed whole, so that what is said of it holds.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from hetero_infer.cost.memory import decoder_layer_bytes, plan_memory
from hetero_infer.cost.timeline import Makespan, recurrence
from hetero_infer.planner.edits import with_choice, with_layer_moved, with_size
from hetero_infer.planner.estimate import PlanCosts
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

NOTICEABLE = 5e-4  # a smaller share of the time counts as the same time


@dataclass(frozen=True)
class Change:
    """Decoder layer `layer` at `choice` on `device`, all else as it was.

    `missing_bytes` is what the device lacks for it, `freed_bytes` what it would have more than now; both may be
    negative. `total_s` and `omega` are the changed plan's, `slower` and `added_omega` what it takes and loses more
    than now: `slower` as a share of the time.
    """

    device: str
    layer: int
    choice: Choice
    missing_bytes: int
    freed_bytes: int
    total_s: float
    slower: float
    omega: float
    added_omega: float

    @property
    def fits(self) -> bool:
        return self.missing_bytes <= 0

    @property
    def helps(self) -> bool:
        """Less time, or less quality lost in the same time."""
        return self.slower < -NOTICEABLE or (self.added_omega < 0 and self.slower < NOTICEABLE)


@dataclass(frozen=True)
class SizeChange:
    """Micro-batches of another size in one phase, the same stages."""

    phase: Phase
    micro_batch_size: int
    total_s: float
    slower: float


@dataclass(frozen=True)
class PlanChanges:
    """A plan and those one change away, under the request's model, links, seconds and indicator."""

    plan: Plan
    request: PlanRequest
    _seconds: dict[object, float] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def costs(self) -> PlanCosts:
        return self._costs(self.plan)

    @cached_property
    def makespan(self) -> Makespan:
        return recurrence(
            self.costs, self.plan.workload, self.plan.prefill_micro_batch_size, self.plan.decode_micro_batch_size
        )

    @cached_property
    def omega(self) -> float:
        return self._omega(self.plan)

    @cached_property
    def used_bytes(self) -> tuple[int, ...]:
        return _used_bytes(self.request, self.plan)

    def more_bits(self, stage: int) -> Change | None:
        """The next better choice for one of the stage's layers: one that helps, needs least, then loses least."""
        found = [
            self._change(stage, with_choice(self.plan, layer, choice), layer)
            for layer in self.plan.decoder_range(stage)
            if (choice := self._next_better(stage, layer))
        ]
        return min(found, key=lambda c: (not c.helps, max(0, c.missing_bytes), c.omega), default=None)

    def one_more_layer(self, stage: int) -> Change | None:
        """A layer of the stage before or after, at its bits: one that helps, needs least, then is the faster."""
        found = [self._change(stage, changed, layer) for changed, layer in self._layers_at_the_border(stage)]
        return min(found, key=lambda c: (not c.helps, max(0, c.missing_bytes), c.total_s), default=None)

    def fewer_bits(self, full_devices: Collection[str]) -> Change | None:
        """The worse choice for one layer that adds least to Σω, of those that fit and take less time or less of a
        full device's memory."""
        found = [
            change
            for stage in range(len(self.plan.stages))
            for layer in self.plan.decoder_range(stage)
            for choice in self._allowed(stage)
            if self._loss(layer, choice) > self._loss(layer, self.plan.decoder_choices[layer])
            if (change := self._change(stage, with_choice(self.plan, layer, choice), layer)).fits
            if change.helps or (change.device in full_devices and change.freed_bytes > 0)
        ]
        return min(found, key=lambda change: change.omega, default=None)

    def best_size(self) -> SizeChange | None:
        """The fastest plan that fits with micro-batches of another size in one of the phases."""
        found = [
            SizeChange(phase, size, total_s := self._total_s(changed), self.slower(total_s))
            for phase in Phase
            for size in self.plan.workload.micro_batch_sizes
            if (changed := with_size(self.plan, phase, size)) != self.plan
            if all(self._missing_bytes(changed, stage) <= 0 for stage in range(len(self.plan.stages)))
        ]
        return min(found, key=lambda change: change.total_s, default=None)

    def slower(self, total_s: float) -> float:
        return total_s / self.makespan.total_s - 1

    def _change(self, stage: int, changed: Plan, layer: int) -> Change:
        total_s, omega = self._total_s(changed), self._omega(changed)
        return Change(
            device=self.plan.stages[stage].device,
            layer=layer,
            choice=changed.decoder_choices[layer],
            missing_bytes=self._missing_bytes(changed, stage),
            freed_bytes=self.used_bytes[stage] - _used_bytes(self.request, changed)[stage],
            total_s=total_s,
            slower=self.slower(total_s),
            omega=omega,
            added_omega=omega - self.omega,
        )

    def _next_better(self, stage: int, layer: int) -> Choice | None:
        model, element_bytes = self.request.model, self.costs.devices[stage].element_bytes
        loss = self._loss(layer, self.plan.decoder_choices[layer])
        better = [choice for choice in self._allowed(stage) if self._loss(layer, choice) < loss]
        return min(better, key=lambda choice: decoder_layer_bytes(model, choice, element_bytes), default=None)

    def _layers_at_the_border(self, stage: int) -> Iterator[tuple[Plan, int]]:
        last = len(self.plan.stages) - 1
        for source in (stage - 1, stage + 1):
            layers = self.plan.decoder_range(source) if 0 <= source <= last else range(0)
            if len(layers) > 1:
                layer = layers[0] if source > stage else layers[-1]
                if self.plan.decoder_choices[layer] in self._allowed(stage):
                    yield with_layer_moved(self.plan, source, stage), layer

    def _allowed(self, stage: int) -> tuple[Choice, ...]:
        return self.request.latency.allowed_choices(self.costs.devices[stage], self.request.choices)

    def _loss(self, layer: int, choice: Choice) -> float:
        return self.request.sensitivity.of(layer, choice)

    def _omega(self, plan: Plan) -> float:
        return self.request.sensitivity.total(plan.layer_choices)

    def _missing_bytes(self, plan: Plan, stage: int) -> int:
        return _used_bytes(self.request, plan)[stage] - self.costs.devices[stage].memory_bytes

    def _costs(self, plan: Plan) -> PlanCosts:
        return PlanCosts(plan, self.request.model, self.request.cluster, self.request.latency)

    def _total_s(self, plan: Plan) -> float:
        """The order of the layers within a stage makes no difference, so it is not worked out twice."""
        sizes = plan.prefill_micro_batch_size, plan.decode_micro_batch_size
        key = sizes, tuple(tuple(sorted(stage.layers)) for stage in plan.stages)
        if key not in self._seconds:
            self._seconds[key] = recurrence(self._costs(plan), plan.workload, *sizes).total_s
        return self._seconds[key]


def _used_bytes(request: PlanRequest, plan: Plan) -> tuple[int, ...]:
    return tuple(memory.total for memory in plan_memory(request.model, plan))

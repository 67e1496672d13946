"""What more of something would give, each time by planning again: memory, a faster link, a device more or less.

In: a plan, the request it is judged with, seconds for each planning. Out: `Alternative`s beside the plan made anew
from the request as it is, so that both sides are the planner's own and have a gap.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hetero_infer.planner.answers.changes import NOTICEABLE
from hetero_infer.planner.answers.explain import Explanation
from hetero_infer.planner.answers.what_if import Worth
from hetero_infer.planner.check import MIB
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.cluster import Device, Link
from hetero_infer.spec.gpu_type import GIB
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class Alternative:
    """A change, and what the planner makes of it in the time: a plan, or why there is none."""

    about: str
    change: str
    now: Plan
    outcome: Plan | NoPlan

    @classmethod
    def of(
        cls, now: Plan, about: str, change: str, changed: PlanRequest, *, each_s: float, gap: float
    ) -> "Alternative":
        found = plan_or_why(changed, time_limit_s=each_s, gap=gap)
        kept = _kept(now, changed, found) if isinstance(found, Plan) else None
        return cls(about, change, now, kept or found)

    @property
    def worth(self) -> Worth | None:
        return Worth.of(self.now, self.outcome) if isinstance(self.outcome, Plan) else None

    @property
    def sentence(self) -> str:
        if not isinstance(self.outcome, Plan):
            return f"{self.change}: {'there is no plan' if self.outcome.is_proven else 'no plan was found in the time'}"
        assert self.worth and self.outcome.solver
        faster = self.worth.factor - 1
        what = (
            "nothing" if abs(faster) < NOTICEABLE else f"{abs(faster):.1%} {'more' if faster > 0 else 'fewer'} tokens/s"
        )
        return f"{self.change}: {what} (gap {self.outcome.solver.gap:.2%})"

    def to_json(self) -> dict[str, Any]:
        plan = self.outcome if isinstance(self.outcome, Plan) else None
        return {
            "about": self.about,
            "change": self.change,
            "tokens_per_s": plan and plan.estimate and plan.estimate.tokens_per_s,
            "gap": plan and plan.solver and plan.solver.gap,
            "worth": self.worth and asdict(self.worth),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Again:
    """The request planned again as it is (`now`) and with each change; `left_out` says what forcing devices in costs.

    A device stands for its kind: one of each type, memory and slowdown.
    """

    plan: Plan
    now: Plan | NoPlan
    alternatives: tuple[Alternative, ...]
    left_out: tuple[str, ...]
    each_s: float

    @classmethod
    def of(cls, plan: Plan, explanation: Explanation, request: PlanRequest, *, each_s: float, gap: float) -> "Again":
        """Under the plan's own quality limit, `each_s` for every planning."""
        request = replace(request, omega_limit=plan.quality.limit if plan.quality else math.inf)
        now = plan_or_why(request, time_limit_s=each_s, gap=gap)
        if not isinstance(now, Plan):
            return cls(plan, now, (), (), each_s)
        binding = [finding.device for finding in explanation.memory if finding.binds]
        changes = _changes(now, request, binding)
        found = tuple(Alternative.of(now, *change, each_s=each_s, gap=gap) for change in changes)
        return cls(plan, now, found, tuple(left_out(now, request, each_s, gap)), each_s)

    @property
    def sentences(self) -> Iterator[tuple[str, str]]:
        yield "again", f"planned again with {self.each_s:g} s each: {self._as_it_is}"
        yield from ((found.about, found.sentence) for found in self.alternatives)
        yield from (("left out", sentence) for sentence in self.left_out)

    @property
    def _as_it_is(self) -> str:
        if not isinstance(self.now, Plan):
            return self.now.why
        assert self.now.estimate and self.now.solver
        tokens, gap = self.now.estimate.tokens_per_s, self.now.solver.gap
        return f"{tokens:.1f} tokens/s as things are (gap {gap:.2%}), and beside it:"

    def to_json(self) -> list[dict[str, Any]]:
        return [
            *(found.to_json() for found in self.alternatives),
            *({"about": "left out", "sentence": sentence} for sentence in self.left_out),
        ]


def left_out(now: Plan, request: PlanRequest, each_s: float, gap: float) -> Iterator[str]:
    """A sentence for each kind of device that the plan does not use: what forcing one in would cost."""
    used = [stage.device for stage in now.stages]
    for device in _kinds(device for device in request.cluster.devices if device.name not in used):
        yield f"{_words(device)}: {_forced(now, request, device, each_s, gap)}"


def _changes(now: Plan, request: PlanRequest, binding: Sequence[str]) -> Iterator[tuple[str, str, PlanRequest]]:
    cluster = request.cluster
    for device in _kinds(map(cluster.device, binding)):
        more, unit = (GIB, "GiB") if device.memory_bytes >= 4 * GIB else (MIB, "MiB")
        grown = replace(device, memory_bytes=device.memory_bytes + more)
        devices = tuple(grown if one == device else one for one in cluster.devices)
        yield "memory", f"1 {unit} more on {device.name}", _with(request, devices)
    if len(now.stages) > 1:
        source, target = _slowest_link(now, request)
        links = {
            (one.host, other.host): _twice(cluster.link(one, other))
            for one, other in ((source, target), (target, source))
        }
        change = f"a link twice as fast between {source.host} and {target.host}"
        yield "link", change, replace(request, cluster=replace(cluster, links={**cluster.links, **links}))
    for device in _kinds(cluster.devices):
        if len(cluster.devices) < request.model.num_hidden_layers:
            another = replace(device, host=f"new-{device.type}", slot=0)
            yield "device", f"one more like {_words(device)}", _with(request, (*cluster.devices, another))
    for device in _kinds(now.device_of(stage) for stage in range(len(now.stages))):
        if len(cluster.devices) > 1:
            yield (
                "device",
                f"without {_words(device)}",
                _with(request, tuple(one for one in cluster.devices if one != device)),
            )


def _kept(now: Plan, changed: PlanRequest, found: Plan) -> Plan | None:
    """The plan as it was, where the change leaves it possible and the time was too short to find it or a better one."""
    names = {device.name for device in changed.cluster.devices}
    if not all(stage.device in names for stage in now.stages):
        return None
    plan = replace(now, devices=changed.cluster.devices)
    estimate = estimate_plan(plan, changed.model, changed.cluster, changed.latency)
    assert found.solver and found.estimate
    if estimate.total_s >= found.estimate.total_s:
        return None
    objective = min(found.solver.objective, estimate.closed_form_s)
    bound = min(found.solver.bound, objective)
    report = replace(found.solver, objective=objective, bound=bound, gap=1 - bound / objective)
    return replace(plan, estimate=estimate, solver=report)


def _twice(link: Link) -> Link:
    return Link(link.alpha_s / 2, link.bytes_per_s * 2)


def _slowest_link(now: Plan, request: PlanRequest) -> tuple[Device, Device]:
    """The devices of two neighbouring stages between which a whole batch spends most."""
    costs = PlanCosts(now, request.model, request.cluster, request.latency)
    phases = {phase: costs.of_phase(phase) for phase in Phase}
    rounds = {Phase.PREFILL: 1, Phase.DECODE: now.workload.new_tokens - 1}

    def spent_s(stage: int) -> float:
        return sum(rounds[phase] * phases[phase].micro_batches * phases[phase].send_s[stage] for phase in Phase)

    stage = max(range(len(now.stages) - 1), key=spent_s)
    return costs.devices[stage], costs.devices[stage + 1]


def _forced(now: Plan, request: PlanRequest, device: Device, each_s: float, gap: float) -> str:
    """The best plan that uses one more of the kind than `now` does."""
    used = [now.device_of(stage) for stage in range(len(now.stages))]
    must_use = [device.name, *(other.name for other in used if _kind(other) == _kind(device))]
    forced = plan_or_why(request, time_limit_s=each_s, gap=gap, must_use=must_use)
    if not isinstance(forced, Plan):
        return "no plan can use it" if forced.is_proven else "no plan with it was found in the time"
    assert now.estimate and forced.estimate and forced.solver
    slower = forced.estimate.total_s / now.estimate.total_s - 1
    words = "is as fast" if abs(slower) < NOTICEABLE else f"is {abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
    return f"the best plan with it {words} (gap {forced.solver.gap:.2%})"


def _with(request: PlanRequest, devices: tuple[Device, ...]) -> PlanRequest:
    return replace(request, cluster=replace(request.cluster, devices=devices))


def _kinds(devices: Iterable[Device]) -> list[Device]:
    """The first of each kind."""
    return list({_kind(device): device for device in reversed(list(devices))}.values())[::-1]


def _kind(device: Device) -> tuple[str, int, float]:
    return device.timed_as, device.memory_bytes, device.slowdown


def _words(device: Device) -> str:
    return f"{device.name} ({device.type})"

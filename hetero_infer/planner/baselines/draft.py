"""A plan from its stages alone, or the reason why there is none: what every baseline ends with.

In: devices in pipeline order, each with the choices of its decoder layers. Out: the fastest `Plan` with these stages
over all micro-batch sizes that fit, by the recurrence, or `NoPlan`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hetero_infer.cost.memory import plan_memory
from hetero_infer.cost.timeline import decode_seconds, prefill_seconds, recurrence
from hetero_infer.planner.check import missing_mib, unmeasured
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.problem import QUALITY_TOLERANCE
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.plan import Plan, QualityPlan, StagePlan
from hetero_infer.spec.sensitivity import ENDS
from hetero_infer.spec.workload import Phase

JUDGED = 3  # pairs of sizes: the fastest by the closed form are compared by the recurrence

Stages = Sequence[tuple[Device, Sequence[Choice]]]


def draft(request: PlanRequest, stages: Stages, prefill_size: int, decode_size: int) -> Plan:
    """The plan of these stages and sizes; neither checked nor estimated."""
    plan = Plan(
        model=request.model_facts,
        devices=request.cluster.devices,
        workload=request.workload,
        stages=_with_ends(stages, *_highest_ends(request)),
        prefill_micro_batch_size=prefill_size,
        decode_micro_batch_size=decode_size,
    )
    return replace(
        plan,
        quality=QualityPlan(
            max_perplexity_increase=request.max_perplexity_increase,
            limit=request.omega_limit,
            predicted=request.sensitivity.total(plan.layer_choices),
            unit=request.sensitivity.unit,
        ),
    )


def _with_ends(stages: Stages, embedding: Choice, head: Choice) -> tuple[StagePlan, ...]:
    """With the embedding on the first and the head on the last."""
    last = len(stages) - 1
    return tuple(
        StagePlan(device.name, (embedding,) * (stage == 0) + tuple(choices) + (head,) * (stage == last))
        for stage, (device, choices) in enumerate(stages)
    )


def with_highest_ends(request: PlanRequest) -> PlanRequest:
    """No baseline chooses bits for embedding and head: they have the highest that are allowed."""
    embedding, head = _highest_ends(request)
    return replace(request, embedding_choices=(embedding,), head_choices=(head,))


def _highest_ends(request: PlanRequest) -> tuple[Choice, Choice]:
    embedding, head = (max(request.end_choices(kind)) for kind in ENDS)
    return embedding, head


def best_sized(request: PlanRequest, stages: Stages) -> Plan | NoPlan:
    """The fastest micro-batch sizes for these stages.

    The closed form is a sum over the phases, so it is worked out for each size once, and not for each pair.
    """
    if not all(choices for _, choices in stages):
        return NoPlan("has more devices than layers")
    sizes = request.workload.micro_batch_sizes
    smallest = draft(request, stages, sizes[-1], sizes[-1])
    why = obstacle(request, smallest)
    if why:
        return NoPlan(why)
    prefill_s, decode_s = {}, {}
    for size in sizes:
        costs = costs_of(request, draft(request, stages, size, size))
        prefill_s[size] = prefill_seconds(costs.of_phase(Phase.PREFILL))
        decode_s[size] = decode_seconds(costs.of_phase(Phase.DECODE), request.workload.new_tokens)
    pairs = sorted(itertools.product(sizes, sizes), key=lambda pair: prefill_s[pair[0]] + decode_s[pair[1]])
    plans = (draft(request, stages, *pair) for pair in pairs)
    fitting = (plan for plan in plans if lacks_memory(request, plan) is None)
    best = min(itertools.islice(fitting, JUDGED), key=lambda plan: judged_s(request, plan))
    return estimated(request, best)


def fastest(outcomes: Iterable[Plan | NoPlan]) -> Plan | NoPlan:
    """The fastest plan by its estimate, or the first reason why there is none."""
    found = list(outcomes)
    plans = [outcome for outcome in found if isinstance(outcome, Plan)]
    return min(plans, key=lambda plan: plan.estimate.total_s if plan.estimate else math.inf, default=found[0])


def estimated(request: PlanRequest, plan: Plan) -> Plan:
    return replace(plan, estimate=estimate_plan(plan, request.model, request.cluster, request.latency))


def costs_of(request: PlanRequest, plan: Plan) -> PlanCosts:
    return PlanCosts(plan, request.model, request.cluster, request.latency)


def judged_s(request: PlanRequest, plan: Plan) -> float:
    """Seconds by the recurrence, which is what the simulation of the schedules takes."""
    sizes = plan.prefill_micro_batch_size, plan.decode_micro_batch_size
    return recurrence(costs_of(request, plan), plan.workload, *sizes).total_s


def obstacle(request: PlanRequest, plan: Plan) -> str | None:
    """The first constraint that a plan breaks, in few words."""
    return lacks_memory(request, plan) or _is_not_measured(request, plan) or _loses_too_much(request, plan)


def lacks_memory(request: PlanRequest, plan: Plan) -> str | None:
    for stage, memory in enumerate(plan_memory(request.model, plan)):
        device = plan.device_of(stage)
        if memory.total > device.memory_bytes:
            return f"lacks {missing_mib(memory.total - device.memory_bytes)} on {device.name}"
    return None


def _is_not_measured(request: PlanRequest, plan: Plan) -> str | None:
    for stage, kind, _ in unmeasured(plan, request.latency):
        what = "is not" if kind == "decoder" else f"has no {kind}"
        return f"{what} measured on a {plan.device_of(stage).type}"
    return None


def _loses_too_much(request: PlanRequest, plan: Plan) -> str | None:
    loss, largest = request.sensitivity.total(plan.layer_choices), max(map(max, request.sensitivity.omega))
    if loss > request.omega_limit + QUALITY_TOLERANCE * largest:
        return f"loses {loss:.3f} of {request.omega_limit:.3f} {request.sensitivity.unit}"
    return None

"""The split everyone starts from, even layers at one bitwidth, and what it would have done."""

from dataclasses import replace

from hetero_infer.cost.memory import plan_memory
from hetero_infer.planner.check import missing_mib
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import DEFAULT_GROUP_SIZE, Choice
from hetero_infer.spec.plan import Plan, StagePlan


def uniform_plan(plan: Plan, choice: Choice) -> Plan:
    """`plan` with its decoder layers spread evenly and all at `choice`; no estimate, no proof."""
    layers, stages = plan.model["num_hidden_layers"], len(plan.stages)
    counts = [layers // stages + (stage < layers % stages) for stage in range(stages)]
    return replace(
        plan,
        stages=tuple(
            StagePlan(
                old.device,
                (plan.embedding_choice,) * (stage == 0)
                + (choice,) * count
                + (plan.head_choice,) * (stage == stages - 1),
            )
            for stage, (old, count) in enumerate(zip(plan.stages, counts, strict=True))
        ),
        estimate=None,
        quality=None,
        solver=None,
    )


def why_not_uniform(request: PlanRequest, plan: Plan) -> str:
    """One line: what becomes of the even split, from the highest bits down to the first that can run."""
    assert plan.estimate
    reasons = []
    for choice in sorted(request.choices, key=lambda choice: -choice.bits):
        uniform = uniform_plan(plan, choice)
        if uniform.stages == plan.stages:
            return f"this is the even split, at {bits_words(choice)}"
        obstacle = _obstacle(request, uniform)
        if obstacle is None:
            estimate = estimate_plan(uniform, request.model, request.cluster, request.latency)
            reasons.append(f"{bits_words(choice)} would take {estimate.total_s / plan.estimate.total_s:.2f}x as long")
            break
        reasons.append(f"{bits_words(choice)} {obstacle}")
    return "an even split at " + ", at ".join(reasons)


def bits_words(choice: Choice) -> str:
    """``4 bits``; the groups only where they are not the usual ones."""
    unusual = choice.is_quantised and choice.group_size != DEFAULT_GROUP_SIZE
    return f"{choice.bits} bits" + (f" in groups of {choice.group_size}" if unusual else "")


def _obstacle(request: PlanRequest, plan: Plan) -> str | None:
    """The first constraint that a plan breaks, in few words."""
    for stage, memory in enumerate(plan_memory(request.model, plan)):
        device = plan.device_of(stage)
        if memory.total > device.memory_bytes:
            return f"lacks {missing_mib(memory.total - device.memory_bytes)} on {device.name}"
        if not set(plan.decoder_choices) <= set(request.latency.allowed_choices(device, request.choices)):
            return f"is not measured on a {device.type}"
    loss = request.sensitivity.total(plan.layer_choices)
    if loss > request.omega_limit:
        return f"loses {loss:.3f} of {request.omega_limit:.3f} {request.sensitivity.unit}"
    return None

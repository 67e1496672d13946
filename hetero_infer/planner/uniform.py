"""The split everyone starts from, even layers at one bitwidth, and what it would have done."""

from dataclasses import replace

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import UNQUANTISED, Choice
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
                (UNQUANTISED,) * (stage == 0) + (choice,) * count + (UNQUANTISED,) * (stage == stages - 1),
            )
            for stage, (old, count) in enumerate(zip(plan.stages, counts, strict=True))
        ),
        estimate=None,
        quality=None,
        solver=None,
    )


def why_not_uniform(request: PlanRequest, plan: Plan) -> str:
    """One line: how the plan differs from the best uniform one, or why there is none."""
    assert plan.estimate
    reasons = []
    for choice in sorted(request.choices, key=lambda choice: -choice.bits):
        uniform = uniform_plan(plan, choice)
        if uniform.stages == plan.stages:
            return f"this is the uniform split at {choice.bits} bits: nothing unlike it is faster"
        limited = replace(uniform, quality=plan.quality)
        violations = check_plan(limited, request.model, request.sensitivity)
        if not violations:
            estimate = estimate_plan(uniform, request.model, request.cluster, request.latency)
            ratio = estimate.total_s / plan.estimate.total_s
            return "; ".join([*reasons, f"uniform at {choice.bits} bits fits and takes {ratio:.2f}x as long"])
        reasons.append(f"uniform at {choice.bits} bits: {violations[0]}")
    return "; ".join(reasons)

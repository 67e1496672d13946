"""Replicas planned once more by the exact search of one pipeline, each on its own devices and for its own share.

In: the plans of a fleet, and a deadline. Out: the same fleet, its replicas as fast or faster.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec.errors import HeteroInferError
from hetero_infer.spec.plan import Plan, StagePlan

LEAST_S = 0.5  # that an exact search is worth starting for
MOST_DEVICES = 12  # more take the exact search longer than a fleet's planning lasts
GAP = 1e-3


def polished(request: PlanRequest, plans: Sequence[Plan], *, deadline_s: float) -> list[Plan]:
    """The slowest first, for it makes the fleet wait; of alike replicas one is planned, for all of them."""
    better = list(plans)
    groups: dict[object, list[int]] = {}
    for number, plan in sorted(enumerate(plans), key=lambda item: -_total_s(item[1])):
        groups.setdefault(_what_it_is(plan), []).append(number)
    for numbers in groups.values():
        left_s, draft = deadline_s - time.monotonic(), plans[numbers[0]]
        if left_s < LEAST_S or len(draft.devices) > MOST_DEVICES:
            break
        try:
            plan = find_plan(_alone(request, draft), time_limit_s=left_s, gap=GAP)
        except HeteroInferError:
            continue
        if _total_s(plan) < _total_s(draft):
            for number in numbers:
                better[number] = _moved(plan, plans[number])
    return better


def least_s(plan: Plan) -> float:
    """The least closed form that is known on its devices: the plan's own, unless the judge preferred another."""
    assert plan.estimate
    return plan.solver.objective if plan.solver else plan.estimate.closed_form_s


def _total_s(plan: Plan) -> float:
    assert plan.estimate
    return plan.estimate.total_s


def _alone(request: PlanRequest, plan: Plan) -> PlanRequest:
    """The request of this replica, as if it had no others beside it."""
    return replace(request, cluster=replace(request.cluster, devices=plan.devices), workload=plan.workload)


def _what_it_is(plan: Plan) -> object:
    """The same for replicas that take the same plan on devices of their own."""
    places = ((device.host, replace(device, host="", slot=0)) for device in plan.devices)
    return tuple(places), plan.workload


def _moved(plan: Plan, other: Plan) -> Plan:
    """On the devices of `other`, which are the same in the same order."""
    names = {mine.name: theirs.name for mine, theirs in zip(plan.devices, other.devices, strict=True)}
    stages = tuple(StagePlan(names[stage.device], stage.layers) for stage in plan.stages)
    return replace(plan, devices=other.devices, stages=stages)

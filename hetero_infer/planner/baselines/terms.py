"""The planner's own coefficients of one stage, for rules that look at devices one by one."""

from collections.abc import Mapping
from dataclasses import replace

from hetero_infer.planner.problem import StageTerms, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.workload import Phase


def stage_terms(
    request: PlanRequest, device: Device, size: Mapping[Phase, int], *, is_first: bool, is_last: bool
) -> StageTerms:
    devices = [device]
    if not is_first:
        devices.insert(0, replace(device, slot=1000))
    if not is_last:
        devices.append(replace(device, slot=1001))
    there = replace(request, cluster=replace(request.cluster, devices=tuple(devices)))
    return build_problem(there, size[Phase.PREFILL], size[Phase.DECODE]).stages[0 if is_first else 1]


def fixed_s(stage: StageTerms, phase: Phase) -> float:
    """What stands there besides decoder layers: the embedding, the head."""
    return stage.fixed_s[phase]

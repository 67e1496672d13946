"""The judge's own search: a plan changed one thing at a time, as long as the recurrence finds it faster.

The closed form charges a smaller last micro-batch as a full one and waits between the phases, so the plan that it finds
best can often be bettered a little by the seconds that count. In: a plan and its request. Out: a plan that is as fast
or faster, and keeps memory and quality limit. Nothing is proven.
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hetero_infer.cost.timeline import recurrence
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.edits import with_layers, with_size
from hetero_infer.planner.estimate import PlanCosts, estimate_plan
from hetero_infer.planner.problem import omega_rows
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import least_omega_layers
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

LEAST_GAIN = 1e-6  # of the seconds, for which a change is made
WORSE = 0.03  # by the closed form: changes that are further off are not judged, which takes long


def descend(request: PlanRequest, plan: Plan, deadline_s: float) -> Plan:
    """Until no change helps, or the deadline on the monotonic clock has come."""
    assert plan.estimate and plan.quality
    best, best_s = plan, plan.estimate.total_s
    most_s = plan.estimate.closed_form_s * (1 + WORSE)
    neighbours = _neighbours(request, best)
    while (changed := next(neighbours, None)) and time.monotonic() < deadline_s:
        costs = PlanCosts(changed, request.model, request.cluster, request.latency)
        if costs.closed_form_s > most_s or check_plan(changed, request.model, request.sensitivity):
            continue
        sizes = changed.prefill_micro_batch_size, changed.decode_micro_batch_size
        total_s = recurrence(costs, changed.workload, *sizes).total_s
        if total_s < best_s * (1 - LEAST_GAIN):
            best, best_s = changed, total_s
            neighbours = _neighbours(request, best)
    if best is plan:
        return plan
    omega = request.sensitivity.total(best.layer_choices)
    estimate = estimate_plan(best, request.model, request.cluster, request.latency)
    return replace(best, estimate=estimate, quality=replace(plan.quality, predicted=omega))


def _neighbours(request: PlanRequest, plan: Plan) -> Iterator[Plan]:
    """Other sizes; and a layer less at one choice on one stage, and one more at any choice on any stage. Layers are
    dealt to the choices of their stage anew, so that they lose least."""
    for phase in Phase:
        for size in plan.workload.micro_batch_sizes:
            if (changed := with_size(plan, phase, size)) != plan:
                yield changed
    omega = omega_rows(request)
    stages = range(len(plan.stages))
    counts = [Counter(plan.decoder_choices[layer] for layer in plan.decoder_range(stage)) for stage in stages]
    allowed = [request.latency.allowed_choices(plan.device_of(stage), request.choices) for stage in stages]
    for source, target in itertools.product(stages, stages):
        if source == target or counts[source].total() > 1:
            for old, new in itertools.product(counts[source], allowed[target]):
                if (source, old) != (target, new):
                    changed_counts = [Counter(count) for count in counts]
                    changed_counts[source][old] -= 1
                    changed_counts[target][new] += 1
                    yield with_layers(plan, least_omega_layers(omega, changed_counts))

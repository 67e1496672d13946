"""What a plan sustains of a stream, against the formula written out, and against the stream served."""

import math
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import exhaust, random_request
from hetero_infer.planner.check import fit_violations
from hetero_infer.planner.estimate import PlanCosts
from hetero_infer.planner.requests import admitting
from hetero_infer.planner.search import find_plan
from hetero_infer.planner.steady import serve, steady_state
from hetero_infer.spec import InfeasibleError, Objective, Phase, Workload
from hetero_infer.spec.requests import RequestLengths

from .test_requests import roomy_request, three_stages

MEAN, MOST = Workload(4, 20, 8), Workload(4, 40, 24)
REQUEST = replace(roomy_request(MEAN), room_for=MOST, objective=Objective.STEADY)


def test_the_period_is_the_busiest_station_or_the_way_round() -> None:
    plan = three_stages(REQUEST)
    assert plan.workload == MOST
    for sizes in ((1, 1), (1, 4), (2, 2), (4, 1)):
        changed = replace(plan, prefill_micro_batch_size=sizes[0], decode_micro_batch_size=sizes[1])
        costs = PlanCosts(replace(changed, workload=MEAN), REQUEST.model, REQUEST.cluster, REQUEST.latency)
        prefill, decode = costs.of_phase(Phase.PREFILL), costs.of_phase(Phase.DECODE)
        micro_batches, prefills = 4 // sizes[1], 4 / 8 / sizes[0]  # in a round
        alone = prefills * (1 - prefills / micro_batches)
        shared = (prefills - alone) / micro_batches
        stations = [
            (p, d)
            for of in ("compute_s", "send_s")
            for p, d in zip(getattr(prefill, of), getattr(decode, of), strict=True)
        ] + [(prefill.return_s, decode.return_s)]
        busiest_s = max(micro_batches * (d + shared * p) for p, d in stations)
        way_round_s = sum(d + shared * p for p, d in stations)
        period_s = max(busiest_s, way_round_s) + alone * sum(p for p, _ in stations)
        steady = steady_state(changed, REQUEST)
        assert steady.period_s == pytest.approx(period_s, rel=1e-12)
        assert steady.tokens_per_s == pytest.approx(4 / steady.period_s)
        assert steady.requests_per_s == pytest.approx(steady.tokens_per_s / 8)


def test_a_served_stream_comes_near_to_what_is_said_to_be_sustained() -> None:
    plan = three_stages(REQUEST)
    served = serve(plan, REQUEST, [RequestLengths(20, 8)] * 400).served
    middle = served[100:300]
    rate = (len(middle) - 1) / (middle[-1].last_token_s - middle[0].last_token_s)
    assert rate == pytest.approx(steady_state(plan, REQUEST).requests_per_s, rel=0.35)


@pytest.mark.parametrize("seed", range(24))
def test_no_plan_has_a_shorter_period(seed: int) -> None:
    """Every other one with memory for longer requests than the average."""
    request = replace(random_request(seed), objective=Objective.STEADY)
    if seed % 2:
        mean = request.workload
        room_for = Workload(mean.batch_size, mean.prompt_tokens + 30, mean.new_tokens + 5)
        request = replace(request, room_for=room_for)
    best_s = exhaust(request).best_s
    if best_s == math.inf:
        with pytest.raises(InfeasibleError):
            find_plan(request, time_limit_s=60, gap=0)
        return
    plan = find_plan(request, time_limit_s=60, gap=0)
    assert plan.solver and plan.solver.objective == pytest.approx(best_s, rel=1e-9)
    assert plan.solver.bound == pytest.approx(best_s, rel=1e-6)
    assert steady_state(plan, request).period_s == pytest.approx(best_s, rel=1e-9)
    assert fit_violations(admitting(plan, request), request.model) == []


def test_the_instances_are_hard_enough_to_mean_something() -> None:
    requests = [replace(random_request(seed), objective=Objective.STEADY) for seed in range(24)]
    found = [request for request in requests if exhaust(request).best_s < math.inf]
    assert len(found) >= 8 and len([request for request in found if len(request.cluster.devices) > 1]) >= 5

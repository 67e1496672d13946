"""A plan for a file of requests: proposed for lengths that stand for them, judged on all of them, as they would run."""

import random
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.cost.timeline import recurrence
from hetero_infer.planner import requests as module
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import PlanCosts
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.requests import admitting, judged_s, propose, representatives
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import UNQUANTISED, Plan, StagePlan, Workload
from hetero_infer.spec.requests import RealRequests, RequestLengths, longest


def roomy_request(workload: Workload) -> PlanRequest:
    """Three unlike devices that hold the model at most choices."""
    request = random_request(20)
    devices = tuple(replace(device, memory_bytes=4 * device.memory_bytes) for device in request.cluster.devices)
    assert len(devices) == 3
    return replace(request, workload=workload, cluster=replace(request.cluster, devices=devices))


def three_stages(request: PlanRequest) -> Plan:
    """Unquantised, a layer or two on each device; for the longest that the request admits."""
    ends = (("embedding",), (), ("head",))
    stages = tuple(
        StagePlan(device.name, (UNQUANTISED,) * (count + len(end)))
        for device, count, end in zip(request.cluster.devices, (2, 1, 1), ends, strict=True)
    )
    return admitting(Plan(request.model_facts, request.cluster.devices, request.workload, stages, 2, 2), request)


def find(request: PlanRequest, time_limit_s: float) -> Plan:
    return admitting(find_plan(request, time_limit_s=60, gap=0), request)


def some_requests(count: int, most: Workload, seed: int = 0) -> list[RequestLengths]:
    """Of which one is the longest that is admitted."""
    rng = random.Random(seed)
    lengths = [
        RequestLengths(rng.randint(1, most.prompt_tokens), rng.randint(1, most.new_tokens)) for _ in range(count - 1)
    ]
    return [*lengths, RequestLengths(most.prompt_tokens, most.new_tokens)]


def with_requests(request: PlanRequest, requests: list[RequestLengths]) -> PlanRequest:
    return replace(request, requests=RealRequests(tuple(requests)))


@pytest.fixture(scope="module")
def request_() -> PlanRequest:
    return roomy_request(Workload(4, 40, 12))


def test_representatives_stand_for_all_and_for_each_third() -> None:
    requests = [RequestLengths(length, 10 * length) for length in (1, 9, 2, 8, 3, 4)]
    assert list(representatives(requests, 4)) == [
        ("average", Workload(4, 5, 45)),
        ("short third", Workload(4, 2, 15)),
        ("middle third", Workload(4, 4, 35)),
        ("long third", Workload(4, 9, 85)),
    ]
    assert [name for name, _ in representatives([RequestLengths(5, 5)] * 9, 4)] == ["average"], "none twice"


def test_every_proposal_has_room_for_the_longest_and_the_fastest_is_first(request_: PlanRequest) -> None:
    requests = some_requests(23, request_.workload)
    assert longest(requests, 4) == request_.workload
    request_ = with_requests(request_, requests)
    proposals = propose(request_, find, 60)
    assert len(proposals) >= 4 and "longest" in {proposal.lengths for proposal in proposals}
    for proposal in proposals:
        assert proposal.plan.workload == request_.workload
        assert check_plan(proposal.plan, request_.model, request_.sensitivity) == []
        assert proposal.seconds == judged_s(proposal.plan, request_)
        assert proposal.plan.estimate == admitting(proposal.plan, request_).estimate
    assert [proposal.seconds for proposal in proposals] == sorted(proposal.seconds for proposal in proposals)
    assert proposals[0].seconds <= min(judged_s(find(request_, 60), request_), proposals[-1].seconds)


def test_equal_requests_take_what_the_plan_promises(request_: PlanRequest) -> None:
    plan = three_stages(request_)
    whole = [RequestLengths(40, 12)] * 12
    costs = PlanCosts(plan, request_.model, request_.cluster, request_.latency)
    promised = recurrence(costs, plan.workload, plan.prefill_micro_batch_size, plan.decode_micro_batch_size)
    # The judge takes a past at the middle of its block of 64 tokens.
    assert judged_s(plan, with_requests(request_, whole)) == pytest.approx(3 * promised.total_s, rel=0.05)
    assert judged_s(plan, with_requests(request_, whole[:9])) < 3 * promised.total_s, "the last batch has one request"


def test_short_requests_take_less(request_: PlanRequest) -> None:
    plan = three_stages(request_)
    whole, short = [RequestLengths(40, 12)] * 8, [RequestLengths(40, 12), *[RequestLengths(4, 3)] * 3] * 2
    assert judged_s(plan, with_requests(request_, short)) < judged_s(plan, with_requests(request_, whole))


def test_a_very_long_file_is_judged_by_some_of_its_batches(
    request_: PlanRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = three_stages(request_)
    requests = some_requests(400, request_.workload)
    judged = {}
    for most in (100, 50):
        monkeypatch.setattr(module, "MOST_BATCHES", most)
        judged[most] = judged_s(plan, with_requests(request_, requests))
    assert judged[50] == pytest.approx(judged[100], rel=0.1) and judged[50] != judged[100]

"""`check_plan` accepts what the planner made and says what is wrong with what a hand made of it."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import FOUR, PlanRequest, RandomLatency, random_request
from hetero_infer.cost.latency import LayerKind
from hetero_infer.planner.check import check_plan
from hetero_infer.spec import UNQUANTISED, Choice, Device, Plan
from tests.planner.all_devices import plan_with_all


@pytest.fixture(scope="module")
def request_() -> PlanRequest:
    return next(
        request
        for request in map(random_request, range(1, 200, 3))
        if len(request.cluster.devices) == 2
        and {FOUR, UNQUANTISED} <= set(request.choices)
        and request.head_choices == (UNQUANTISED,)
    )


@pytest.fixture(scope="module")
def plan(request_: PlanRequest) -> Plan:
    roomy = tuple(replace(device, memory_bytes=2**24) for device in request_.cluster.devices)
    plan = plan_with_all(replace(request_, cluster=replace(request_.cluster, devices=roomy)))
    assert plan
    return plan


def violations(plan: Plan, request: PlanRequest) -> list[str]:
    return check_plan(plan, request.model, request.sensitivity)


def test_the_planner_passes(plan: Plan, request_: PlanRequest) -> None:
    assert violations(plan, request_) == []


def test_missing_memory_is_said_per_device(plan: Plan, request_: PlanRequest) -> None:
    assert plan.estimate
    needed = sum(plan.estimate.memory_bytes[1].values())
    exact = (plan.devices[0], replace(plan.devices[1], memory_bytes=needed))
    short = (plan.devices[0], replace(plan.devices[1], memory_bytes=needed - 1))
    assert violations(replace(plan, devices=exact), request_) == []
    (sentence,) = violations(replace(plan, devices=short), request_)
    assert sentence.startswith("stage 1 (") and "lacks 0.1 MiB" in sentence


def test_lost_quality_is_said_with_its_limit(plan: Plan, request_: PlanRequest) -> None:
    assert plan.quality
    strict = replace(plan.quality, limit=plan.quality.predicted / 2 - 1)
    (sentence,) = violations(replace(plan, quality=strict), request_)
    assert "over the limit" in sentence and "max_perplexity_increase" in sentence


def test_a_bound_that_held_out_text_broke_is_said(plan: Plan, request_: PlanRequest) -> None:
    assert plan.quality
    allowed = plan.quality.allowed
    assert violations(replace(plan, quality=replace(plan.quality, measured=allowed)), request_) == []
    (sentence,) = violations(replace(plan, quality=replace(plan.quality, measured=2 * allowed)), request_)
    assert "measured on held-out text" in sentence and "plan --hold" in sentence


def test_a_choice_without_an_indicator_is_said(plan: Plan, request_: PlanRequest) -> None:
    odd = replace(FOUR, group_size=96)
    first = plan.stages[0]
    edited = replace(
        plan, stages=(replace(first, layers=(first.layers[0], *[odd] * (len(first.layers) - 1))), *plan.stages[1:])
    )
    assert any("no 4g96 bits" in sentence for sentence in violations(edited, request_))


def with_head(plan: Plan, choice: Choice) -> Plan:
    last = plan.stages[-1]
    return replace(plan, stages=(*plan.stages[:-1], replace(last, layers=(*last.layers[:-1], choice))))


def test_an_end_without_an_indicator_is_said(plan: Plan, request_: PlanRequest) -> None:
    (sentence,) = violations(with_head(plan, FOUR), request_)
    assert sentence.startswith("the sensitivity table has no head at 4g64 bits")


class WithoutHeads(RandomLatency):
    """No head was measured anywhere."""

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        return () if kind == "head" else tuple(choices)


def test_what_was_not_measured_is_said_where_seconds_are_asked_for(plan: Plan, request_: PlanRequest) -> None:
    assert violations(plan, request_) == []
    (sentence,) = check_plan(plan, request_.model, request_.sensitivity, WithoutHeads(0))
    last = plan.device_of(1)
    assert sentence.startswith(f"stage 1 ({last.type} on {last.name}) has a head at 16 bits, for which nothing was")


def test_what_an_end_loses_counts(plan: Plan, request_: PlanRequest) -> None:
    assert plan.quality
    left = plan.quality.limit - plan.quality.predicted
    for loss, is_too_much in ((left / 2, False), (left + 1e-3, True)):
        ends = {UNQUANTISED: 0.0, FOUR: loss}
        request = replace(request_, sensitivity=replace(request_.sensitivity, head=ends), head_choices=tuple(ends))
        said = violations(with_head(plan, FOUR), request)
        assert [("over the limit" in sentence) for sentence in said] == [True] * is_too_much


def test_a_plan_for_another_model_is_refused(plan: Plan, request_: PlanRequest) -> None:
    other = replace(request_.model, num_hidden_layers=99)
    assert "the model has 99" in check_plan(plan, other, request_.sensitivity)[0]

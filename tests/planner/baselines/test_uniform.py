"""What becomes of the even split is said from the highest bits down to the first that can run."""

from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import EIGHT, THREE, RandomLatency, random_request
from hetero_infer.planner.baselines.uniform import bits_words, uniform, why_not_uniform
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import UNQUANTISED, Choice, Plan
from tests.planner.all_devices import plan_with_all


@pytest.fixture(scope="module")
def request_() -> PlanRequest:
    request = next(
        r for r in map(random_request, range(0, 300, 3)) if len(r.cluster.devices) == 3 <= r.model.num_hidden_layers
    )
    roomy = tuple(replace(device, memory_bytes=2**26) for device in request.cluster.devices)
    cluster, choices = replace(request.cluster, devices=roomy), request.choices
    return replace(request, cluster=cluster, latency=RandomLatency(1), choices=choices)


@pytest.fixture(scope="module")
def plan(request_: PlanRequest) -> Plan:
    plan = plan_with_all(request_)
    assert plan
    return plan


@pytest.fixture(scope="module")
def even(request_: PlanRequest) -> Plan:
    found = uniform(request_)
    assert isinstance(found, Plan)
    return found


def test_layers_are_dealt_evenly_the_first_stages_take_the_rest(even: Plan, request_: PlanRequest) -> None:
    counts = [len(even.decoder_range(stage)) for stage in range(3)]
    assert sum(counts) == request_.model.num_hidden_layers and max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True) and set(even.decoder_choices) == {max(request_.choices)}
    assert [stage.device for stage in even.stages] == [device.name for device in request_.cluster.devices]


def test_where_it_fits_its_time_is_compared(plan: Plan, even: Plan, request_: PlanRequest) -> None:
    best = max(request_.choices, key=lambda choice: choice.bits)
    assert even.stages != plan.stages and even.estimate and plan.estimate
    ratio = even.estimate.total_s / plan.estimate.total_s
    assert why_not_uniform(request_, plan) == f"an even split at {bits_words(best)} would take {ratio:.2f}x as long"


def test_what_it_lacks_is_named_for_each_choice(plan: Plan, request_: PlanRequest) -> None:
    devices = tuple(replace(device, memory_bytes=1000) for device in request_.cluster.devices)
    tiny = replace(request_, cluster=replace(request_.cluster, devices=devices))
    says = why_not_uniform(tiny, plan)
    assert says.count("MiB on") == len(request_.choices) and says.startswith("no even split can run: ")


def test_bits_that_a_device_was_not_measured_at_are_an_obstacle_not_an_error(plan: Plan, request_: PlanRequest) -> None:
    kind = plan.devices[0].type
    blind = replace(request_, latency=RandomLatency(1, frozenset((kind, choice) for choice in request_.choices)))
    best = max(request_.choices, key=lambda choice: choice.bits)
    assert f"{bits_words(best)} is not measured on a {kind}" in why_not_uniform(blind, plan)


def test_a_plan_that_is_the_even_split_says_so(even: Plan, request_: PlanRequest) -> None:
    best = max(request_.choices, key=lambda choice: choice.bits)
    assert why_not_uniform(request_, even) == f"this is the even split, at {bits_words(best)}"


def test_unusual_groups_are_named() -> None:
    words = [bits_words(choice) for choice in (THREE, EIGHT, UNQUANTISED, Choice(4, 128))]
    assert words == ["3 bits", "8 bits", "16 bits", "4 bits in groups of 128"]

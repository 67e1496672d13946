"""Clusters are edited as asked, and what a change is worth comes from two plans and their proofs."""

import itertools
import math
from dataclasses import replace

import pytest

from hetero_infer.planner.answers.alternatives import Again, left_out
from hetero_infer.planner.answers.cluster_edit import with_added, without
from hetero_infer.planner.answers.explain import explain
from hetero_infer.planner.answers.pareto import ParetoPoint, nondominated, pareto_front
from hetero_infer.planner.answers.what_if import WhatIf, Worth, what_if
from hetero_infer.planner.estimate import estimate_plan
from hetero_infer.planner.no_plan import NoPlan, plan_or_why
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import Cluster, Device, InputError, Link, Plan, QualityPlan

from .test_explain import FOUR, ROOMY, plan_of, request_of, used_bytes

GIB = 2**30
CLUSTER = Cluster(
    (Device("a", 0, "t4", 15 * GIB, 1.5), Device("a", 1, "t4", 15 * GIB), Device("b", 0, "v100-32", 32 * GIB)),
    Link(1e-4, 1e9),
    {("a", "b"): Link(1e-5, 1e10)},
)


def tight_request() -> PlanRequest:
    """Two devices that hold two of the four layers each, and at 4 bits at the most."""
    request = request_of({("a", "b"): Link(5e-3, 1e12), ("b", "a"): Link(1e-3, 1e12)})
    needed = max(used_bytes(plan_of(request), request, stage) for stage in range(2))
    return with_devices(request, *(replace(device, memory_bytes=needed) for device in request.cluster.devices))


def with_devices(request: PlanRequest, *devices: Device) -> PlanRequest:
    return replace(request, cluster=replace(request.cluster, devices=devices))


def test_a_device_more_is_like_those_of_its_type_that_are_there() -> None:
    *_, added = with_added(CLUSTER, "t4:1").devices
    assert added == Device("new-t4", 0, "t4", 15 * GIB, 1.5)
    *_, first, second = with_added(CLUSTER, "t4:2@a=12GiB").devices
    assert (first.name, second.name, second.memory_bytes) == ("a:2", "a:3", 12 * GIB)


def test_a_device_of_another_type_has_the_memory_of_the_spec_sheet_or_the_one_that_is_said() -> None:
    *_, added = with_added(CLUSTER, "a100-40:1@b").devices
    assert added == Device("b", 1, "a100-40", 40 * GIB)
    *_, added = with_added(CLUSTER, "mine:1=24GiB").devices
    assert added.memory_bytes == 24 * GIB


def test_a_new_host_has_the_default_link() -> None:
    changed = with_added(CLUSTER, "l4:1")
    assert changed.link(changed.devices[0], changed.devices[-1]) == CLUSTER.default_link
    assert ("a", "new-l4") in changed.unmeasured_pairs


def test_devices_are_dropped_by_name_or_the_last_of_their_type() -> None:
    assert [device.name for device in without(CLUSTER, "a:0").devices] == ["a:1", "b:0"]
    assert [device.name for device in without(CLUSTER, "t4:1").devices] == ["a:0", "b:0"]
    assert [device.name for device in without(CLUSTER, "t4:2").devices] == ["b:0"]


@pytest.mark.parametrize(
    "text", ["t4", "t4:0", "t4:9999", ":1", "t4:1@", "t4:1=", "mine:1", "cpu:1", "t4:1=12", "t4:-1"]
)
def test_what_cannot_be_added_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--add"):
        with_added(CLUSTER, text)


@pytest.mark.parametrize("text", ["t4", "t4:3", "t4:0", "a:7", "p100:1", ""])
def test_what_cannot_be_dropped_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--drop"):
        without(CLUSTER, text)


def test_a_cluster_keeps_a_device() -> None:
    with pytest.raises(InputError, match="no device would be left"):
        without(without(CLUSTER, "t4:2"), "b:0")


def test_the_worth_of_a_change_lies_between_what_the_proofs_allow() -> None:
    request = tight_request()
    first, second = request.cluster.devices
    slower = with_devices(request, first, replace(second, slowdown=3.0))
    found = what_if(request, slower, time_limit_s=60, gap=0)
    assert isinstance(found.now, Plan) and isinstance(found.changed, Plan) and found.worth
    assert found.now.estimate and found.changed.estimate
    assert found.worth.factor == found.changed.estimate.tokens_per_s / found.now.estimate.tokens_per_s < 1
    assert found.worth.least <= found.worth.most < 1


def test_a_missing_plan_is_an_answer() -> None:
    request = request_of()
    tiny = with_devices(request, *(replace(device, memory_bytes=2**16) for device in request.cluster.devices))
    nothing = plan_or_why(tiny, time_limit_s=20, gap=0)
    assert isinstance(nothing, NoPlan) and nothing.is_proven
    plan = find_plan(request, time_limit_s=60, gap=0)
    assert WhatIf(nothing, plan).sentence == "the change makes it feasible"
    assert WhatIf(plan, nothing).sentence == "there is no plan with the change"
    in_no_time = plan_or_why(request, time_limit_s=0, gap=0)
    assert isinstance(in_no_time, NoPlan) and not in_no_time.is_proven


@pytest.fixture(scope="module")
def again() -> Again:
    request = tight_request()
    plan = find_plan(request, time_limit_s=60, gap=0)
    return Again.of(plan, explain(plan, request), request, each_s=20, gap=0)


def test_each_kind_of_more_is_planned_again(again: Again) -> None:
    changes = {found.change for found in again.alternatives}
    assert changes & {"a link twice as fast between a and b", "a link twice as fast between b and a"}
    assert "one more like a:0 (cpu)" in changes and any(change.startswith("without ") for change in changes)
    assert dict(again.sentences)["again"].startswith("planned again with 20 s each: ")


def test_what_only_adds_never_makes_it_slower(again: Again) -> None:
    for found in again.alternatives:
        if found.about != "device":
            assert found.worth and found.worth.factor >= 1 - 1e-9


def test_a_link_twice_as_fast_is_what_it_says(again: Again) -> None:
    (found,) = [found for found in again.alternatives if found.about == "link"]
    assert isinstance(found.outcome, Plan) and found.outcome.estimate
    faster = request_of({("a", "b"): Link(2.5e-3, 2e12), ("b", "a"): Link(5e-4, 2e12)})
    said = estimate_plan(found.outcome, faster.model, faster.cluster, faster.latency)
    assert said.total_s == pytest.approx(found.outcome.estimate.total_s)


def test_a_device_that_the_plan_leaves_out_is_named_with_what_forcing_it_in_costs() -> None:
    request = tight_request()
    with_slow = with_devices(request, *request.cluster.devices, Device("c", 0, "cpu", ROOMY, 900.0))
    plan = find_plan(with_slow, time_limit_s=60, gap=0)
    assert "c:0" not in {stage.device for stage in plan.stages}
    (sentence,) = left_out(plan, with_slow, 60, 0)
    assert sentence.startswith("c:0 (cpu): the best plan with it is ") and "slower" in sentence
    share = float(sentence.split(" is ")[1].split("%")[0])
    assert share > 1000  # one of its layers takes 900 times as long as one of theirs


def point(tokens_per_s: float, loss: float, devices: int) -> ParetoPoint:
    """Of a plan by hand with these figures."""
    request = request_of()
    layers = ((FOUR,) * 2, (FOUR,) * 2) if devices == 2 else ((FOUR,) * 4,)
    plan = plan_of(with_devices(request, *request.cluster.devices[:devices]), layers)
    estimate = estimate_plan(plan, request.model, request.cluster, request.latency)
    quality = QualityPlan(1.0, math.inf, loss, "nats")
    return ParetoPoint(replace(plan, estimate=replace(estimate, tokens_per_s=tokens_per_s), quality=quality))


def test_the_front_has_what_no_other_beats_in_all_three() -> None:
    fast, good, small = point(100, 0.5, 2), point(50, 0.1, 2), point(40, 0.5, 1)
    beaten = [point(90, 0.5, 2), point(100.001, 0.6, 2), point(30, 0.5, 1)]
    assert nondominated([*beaten, small, good, fast]) == [fast, good, small]


def test_the_front_of_a_request_runs_from_fast_to_good() -> None:
    request = tight_request()
    found = pareto_front(request, find_plan(request, time_limit_s=20, gap=0), each_s=20, gap=0)
    front = found.points
    assert 1 <= len(front) <= found.asked and found.undecided == 0
    assert all(a.tokens_per_s >= b.tokens_per_s for a, b in itertools.pairwise(front))
    assert not any(a.is_beaten_by(b) for a in front for b in front)


def test_worth_is_told_with_both_of_its_ends() -> None:
    assert Worth(1.32, 1.31, 1.33).words == "1.32× the tokens/s (in closed form the proofs leave 1.31× to 1.33×)"

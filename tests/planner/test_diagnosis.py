"""What is said of a request without a plan is so: every remedy is applied, and looked at by exhaustive search."""

import math
from dataclasses import replace
from functools import cache

import pytest

from hetero_infer.bench.planner.tiny import EIGHT, _OnePair, random_request
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.diagnosis import nearest_remedies, why_infeasible
from hetero_infer.planner.feasible import fitting_plans, held_layers, least_loss_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Device
from hetero_infer.spec.sensitivity import StandardErrors
from tests.planner.answers.test_explain import OMEGA, request_of

MIB = 2**20
SEEDS = range(30)


def has_a_plan(request: PlanRequest) -> bool:
    """Of any subset of the devices, in any order."""
    return any(True for _ in _OnePair(request, 1, 1).seconds())


def with_memory(request: PlanRequest, share: float) -> PlanRequest:
    devices = tuple(
        replace(device, memory_bytes=int(device.memory_bytes * share)) for device in request.cluster.devices
    )
    return replace(request, cluster=replace(request.cluster, devices=devices))


@cache
def infeasible() -> list[PlanRequest]:
    """Too little memory, too strict a limit, or both."""
    plain = [random_request(seed) for seed in SEEDS]
    requests = [with_memory(request, share) for request in plain for share in (1.0, 0.7)]
    requests += [replace(request, omega_limit=request.omega_limit / 3) for request in plain]
    return [request for request in requests if not has_a_plan(request)]


@cache
def out_of_memory() -> list[PlanRequest]:
    """Those of them that lack memory, without the limit."""
    unlimited = [replace(request, omega_limit=math.inf) for request in infeasible()]
    return [request for request in unlimited if not has_a_plan(request)]


def test_there_are_cases_of_either_kind() -> None:
    assert len(out_of_memory()) >= 5 and len(infeasible()) - len(out_of_memory()) >= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_is_found_to_fit_just_where_there_is_one(seed: int) -> None:
    """By memory alone exactly; at a quality limit a plan may be missed, and never made up."""
    request = random_request(seed)
    unlimited = replace(request, omega_limit=math.inf)
    assert any(True for _ in fitting_plans(unlimited)) == has_a_plan(unlimited)
    for plan in fitting_plans(request):
        fits_quality = not check_plan(plan, request.model, request.sensitivity)
        assert fits_quality == (plan.quality is not None and plan.quality.predicted <= request.omega_limit)
        assert not fits_quality or has_a_plan(request)


def test_every_remedy_makes_a_plan_possible() -> None:
    for request in infeasible():
        remedies = nearest_remedies(request, deadline_s=math.inf)
        assert len(remedies) <= 3
        assert [remedy.share for remedy in remedies] == sorted(remedy.share for remedy in remedies)
        for remedy in remedies:
            if len(remedy.request.cluster.devices) <= 3:  # more are too many to exhaust
                assert has_a_plan(remedy.request), remedy.says


def test_a_smaller_step_is_not_enough_where_memory_is_what_lacks() -> None:
    for request in out_of_memory():
        for remedy in nearest_remedies(request, deadline_s=math.inf):
            changed = remedy.request.workload
            for what in ("batch_size", "prompt_tokens"):
                if getattr(changed, what) < getattr(request.workload, what):
                    one_more = replace(changed, **{what: getattr(changed, what) + 1})
                    assert not has_a_plan(replace(request, workload=one_more)), remedy.says


def test_of_what_the_devices_hold_no_more_is_said_than_a_plan_could_use() -> None:
    for request in out_of_memory():
        assert sum(held_layers(request)) < request.model.num_hidden_layers


def test_what_the_ends_lose_at_their_best_counts_against_the_limit() -> None:
    ends = {EIGHT: 0.25}
    plain = random_request(1)
    request = replace(
        plain,
        sensitivity=replace(plain.sensitivity, embedding=ends, head=ends),
        embedding_choices=(EIGHT,),
        head_choices=(EIGHT,),
    )
    best = sum(map(min, plain.sensitivity.omega)) + 0.5
    says = why_infeasible(replace(request, omega_limit=best - 0.01), time_limit_s=60)
    assert f"cannot be met: the best choice of every layer gives {best:.6g}" in says
    assert "the best choice" not in why_infeasible(replace(request, omega_limit=best + 0.01), time_limit_s=60)


def missing_from(request: PlanRequest) -> tuple[Device, float]:
    """The device and the MiB of the sentence."""
    says = why_infeasible(request, time_limit_s=60)
    words = says.split("nearest to enough is ")[1].split()
    return request.cluster.device(words[0]), float(words[words.index("lacks") + 1])


def grown(request: PlanRequest, device: Device, mib: float) -> PlanRequest:
    larger = replace(device, memory_bytes=device.memory_bytes + math.ceil(mib * MIB))
    devices = tuple(larger if other == device else other for other in request.cluster.devices)
    return replace(request, cluster=replace(request.cluster, devices=devices))


def test_the_device_that_lacks_least_is_named_with_what_it_lacks() -> None:
    for request in out_of_memory():
        device, mib = missing_from(request)
        assert has_a_plan(grown(request, device, mib))
        if mib > 0.2:
            assert not any(has_a_plan(grown(request, other, mib - 0.21)) for other in request.cluster.devices)


def test_a_limit_out_of_reach_is_said_to_be_the_reason_and_16_bits_the_way_out() -> None:
    says = why_infeasible(replace(request_of(), omega_limit=1e-6), time_limit_s=60)
    assert says.startswith("the quality limit Σω ≤ 1e-06") and "allow 16 bits, too" in says


def test_the_errors_of_a_table_change_no_remedy() -> None:
    """Also not where bits are tried that the table lacks, and its errors with it."""
    request = out_of_memory()[0]
    table = request.sensitivity
    errors = StandardErrors((0.1,) * len(table.choices), table.omega, table.embedding, table.head)
    measured = replace(request, sensitivity=replace(table, errors=errors))
    says, expected = ([one.says for one in nearest_remedies(of, deadline_s=math.inf)] for of in (measured, request))
    assert says == expected != []


def test_without_time_nothing_is_promised() -> None:
    says = why_infeasible(out_of_memory()[0], time_limit_s=0)
    assert "no single change" in says and "lacks" not in says


def test_the_least_loss_is_that_of_the_best_bits_where_they_fit() -> None:
    plan = least_loss_plan(request_of())
    assert plan and plan.quality and plan.quality.predicted == pytest.approx(sum(min(row) for row in OMEGA))

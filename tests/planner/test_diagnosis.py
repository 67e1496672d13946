"""What is said of a request without a plan is so: every remedy is applied, and looked at by exhaustive search."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hetero_infer.planner.check import check_plan
from hetero_infer.planner.diagnosis import nearest_remedies, why_infeasible
from hetero_infer.planner.feasible import fitting_plans, least_loss_plan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Device

from .instances import _plans, random_request
from .test_explain import OMEGA, request_of

MIB = 2**20
SEEDS = range(40)


def in_every_order(request: PlanRequest) -> Iterator[PlanRequest]:
    """The request with each subset of its devices, in each order."""
    devices = request.cluster.devices
    for count in range(1, len(devices) + 1):
        for order in itertools.permutations(devices, count):
            yield replace(request, cluster=replace(request.cluster, devices=order))


def has_a_plan(request: PlanRequest) -> bool:
    return any(True for ordered in in_every_order(request) for _ in _plans(ordered, 1, 1))


def with_memory(request: PlanRequest, share: float) -> PlanRequest:
    devices = tuple(
        replace(device, memory_bytes=int(device.memory_bytes * share)) for device in request.cluster.devices
    )
    return replace(request, cluster=replace(request.cluster, devices=devices))


def without_any_plan() -> list[PlanRequest]:
    """Too little memory, too strict a limit, or both; nothing that the latency model refuses."""
    plain = [request for seed in SEEDS if not (request := random_request(seed)).latency.refused]  # type: ignore[attr-defined]
    requests = [with_memory(request, share) for request in plain for share in (1.0, 0.7)]
    requests += [replace(request, omega_limit=request.omega_limit / 3) for request in plain]
    return [request for request in requests if not has_a_plan(request)]


INFEASIBLE = without_any_plan()
OUT_OF_MEMORY = [request for request in INFEASIBLE if not has_a_plan(replace(request, omega_limit=math.inf))]


def test_there_are_cases_of_either_kind() -> None:
    assert len(OUT_OF_MEMORY) >= 5 and len(INFEASIBLE) - len(OUT_OF_MEMORY) >= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_is_found_to_fit_just_where_there_is_one(seed: int) -> None:
    """By memory alone exactly; at a quality limit a plan may be missed, and never made up."""
    request = random_request(seed)
    if request.latency.refused:  # type: ignore[attr-defined]
        pytest.skip("the exhaustive search takes no notice of what the ends are refused")
    unlimited = replace(request, omega_limit=math.inf)
    assert any(True for _ in fitting_plans(unlimited)) == has_a_plan(unlimited)
    for plan in fitting_plans(request):
        fits_quality = not check_plan(plan, request.model, request.sensitivity)
        assert fits_quality == (plan.quality is not None and plan.quality.predicted <= request.omega_limit)
        assert not fits_quality or has_a_plan(request)


@pytest.mark.parametrize("number", range(len(INFEASIBLE)))
def test_every_remedy_makes_a_plan_possible(number: int) -> None:
    remedies = nearest_remedies(INFEASIBLE[number], deadline_s=math.inf)
    assert len(remedies) <= 3
    assert [remedy.share for remedy in remedies] == sorted(remedy.share for remedy in remedies)
    for remedy in remedies:
        if len(remedy.request.cluster.devices) <= 3:  # more are too many to exhaust
            assert has_a_plan(remedy.request), remedy.says


@pytest.mark.parametrize("number", range(len(OUT_OF_MEMORY)))
def test_a_smaller_step_is_not_enough_where_memory_is_what_lacks(number: int) -> None:
    request = replace(OUT_OF_MEMORY[number], omega_limit=math.inf)
    for remedy in nearest_remedies(request, deadline_s=math.inf):
        changed = remedy.request.workload
        if changed.batch_size < request.workload.batch_size:
            assert not has_a_plan(replace(request, workload=replace(changed, batch_size=changed.batch_size + 1)))
        if changed.prompt_tokens < request.workload.prompt_tokens:
            assert not has_a_plan(replace(request, workload=replace(changed, prompt_tokens=changed.prompt_tokens + 1)))


def missing_from(request: PlanRequest) -> tuple[Device, float]:
    """The device and the MiB of the sentence."""
    says = why_infeasible(request, time_limit_s=60)
    words = says.split("nearest to enough is ")[1].split()
    return request.cluster.device(words[0]), float(words[words.index("lacks") + 1])


@pytest.mark.parametrize("number", range(len(OUT_OF_MEMORY)))
def test_the_device_that_lacks_least_is_named_with_what_it_lacks(number: int) -> None:
    request = replace(OUT_OF_MEMORY[number], omega_limit=math.inf)
    device, mib = missing_from(request)

    def grown(one: Device, by_mib: float) -> PlanRequest:
        larger = replace(one, memory_bytes=one.memory_bytes + math.ceil(by_mib * MIB))
        devices = tuple(larger if other == one else other for other in request.cluster.devices)
        return replace(request, cluster=replace(request.cluster, devices=devices))

    assert has_a_plan(grown(device, mib))
    assert not any(has_a_plan(grown(other, mib - 0.21)) for other in request.cluster.devices if mib > 0.3)


def test_a_limit_out_of_reach_is_said_to_be_the_reason_and_16_bits_the_way_out() -> None:
    says = why_infeasible(replace(request_of(), omega_limit=1e-6), time_limit_s=60)
    assert says.startswith("the quality limit Σω ≤ 1e-06") and "allow 16 bits, too" in says


def test_without_time_nothing_is_promised() -> None:
    says = why_infeasible(OUT_OF_MEMORY[0], time_limit_s=0)
    assert "no single change" in says and "lacks" not in says


def test_the_least_loss_is_that_of_the_best_bits_where_they_fit() -> None:
    plan = least_loss_plan(request_of())
    assert plan and plan.quality and plan.quality.predicted == pytest.approx(sum(min(row) for row in OMEGA))

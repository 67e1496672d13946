"""Where not everything can be told apart or looked at, the bound still holds and the plan is a real one."""

import math
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import PlanRequest, exhaust, random_request
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.exact import least_omega, ring_paths, search_space
from hetero_infer.planner.exact.search_space import SearchSpace
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import Cluster, Device, HeteroInferError, InfeasibleError, InputError, Link, Objective


def alike_on_hosts(seed: int) -> PlanRequest:
    """Three alike devices, each on a host of its own, that need each other's memory; no two links are alike."""
    request = replace(random_request(seed), objective=Objective.RING)
    devices = tuple(Device(host, 0, "t4", 450_000) for host in "abc")
    pairs = [(a, b) for a in "abc" for b in "abc" if a != b]
    links = {pair: Link(1e-4 * (1 + seed % 3), 1e6 * (1 + k)) for k, pair in enumerate(pairs)}
    return replace(request, cluster=Cluster(devices, Link(1e-4, 1e7), links))


SEEDS = [
    seed
    for seed in range(1, 80)
    if seed % 4 and random_request(seed).model.num_hidden_layers > 2 and exhaust(alike_on_hosts(seed)).best_s < math.inf
]


def test_there_are_requests_to_ask_about() -> None:
    assert len(SEEDS) >= 10


@pytest.mark.parametrize("seed", SEEDS[:12])
def test_hosts_that_are_not_told_apart_make_the_bound_no_larger(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    request = alike_on_hosts(seed)
    best_s = exhaust(request).best_s
    exact = find_plan(request, time_limit_s=60, gap=0)
    assert exact.solver and exact.solver.objective == pytest.approx(best_s, rel=1e-9)
    monkeypatch.setattr(ring_paths, "MOST_STATES", 4 * request.model.num_hidden_layers)
    assert len(SearchSpace(request).classes) == 1
    plan = find_plan(request, time_limit_s=60, gap=0)
    assert plan.solver and plan.solver.bound <= best_s * (1 + 1e-9) and plan.solver.objective >= best_s * (1 - 1e-9)
    assert plan.solver.gap == pytest.approx(1 - plan.solver.bound / plan.solver.objective)
    assert plan.solver.status == ("optimal" if plan.solver.gap <= 1e-7 else "bound is loose")
    assert check_plan(plan, request.model, request.sensitivity) == []


def test_mixes_that_are_left_out_make_the_bound_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_omega, "MOST_ENTRIES", 12)
    found = 0
    for seed in SEEDS:
        request = alike_on_hosts(seed)
        space = SearchSpace(request)
        if not (space.space(1, 1) and space.is_restricted):  # few choices and layers
            continue
        best_s = exhaust(request).best_s
        try:
            plan = find_plan(request, time_limit_s=60, gap=0)
        except HeteroInferError as error:  # not called infeasible: it is not
            assert "take fewer [quality] choices" in str(error) and not isinstance(error, InfeasibleError)
            continue
        assert plan.solver and plan.solver.bound <= best_s * (1 + 1e-9)
        assert plan.solver.objective >= best_s * (1 - 1e-9)
        found += 1
    assert found >= 4


def test_a_link_that_no_two_devices_have_is_not_counted_on() -> None:
    """One slot a host, and all links alike: the hosts' links with themselves are nobody's."""
    for seed in SEEDS[:6]:
        request = alike_on_hosts(seed)
        pairs = [(a, b) for a in "abc" for b in "abc" if a != b]
        slow = dict.fromkeys(pairs, Link(5e-3, 1e5))
        request = replace(request, cluster=replace(request.cluster, links=slow))
        assert len(SearchSpace(request).classes) == 1
        plan = find_plan(request, time_limit_s=60, gap=0)
        assert plan.solver and plan.solver.objective == pytest.approx(exhaust(request).best_s, rel=1e-9)
        assert plan.solver.status == "optimal"


def test_more_choices_than_can_be_numbered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = alike_on_hosts(SEEDS[0])
    monkeypatch.setattr(search_space, "MOST_KEYS", 10)
    with pytest.raises(InputError, match=r"choices for . layers are too many to plan with"):
        SearchSpace(request).space(1, 1)

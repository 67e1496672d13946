"""Time limits and impossible wishes are answered, not swallowed."""

import math
from dataclasses import replace

import pytest

from hetero_infer.planner import search
from hetero_infer.planner.problem import build_problem
from hetero_infer.planner.solver import Undecided, solve
from hetero_infer.spec import HeteroInferError, InfeasibleError, InputError, Phase

from .instances import EIGHT, brute_force, random_request

EASY = 0  # a seed with several pairs, several devices and no quality limit


def test_pairs_that_time_did_not_reach_stay_in_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    request = random_request(EASY)
    calls = []

    def only_the_last_pair(problem, **options):  # type: ignore[no-untyped-def]
        calls.append(problem)
        if problem.micro_batch_size == {Phase.PREFILL: 1, Phase.DECODE: 1}:
            return solve(problem, **options)
        return Undecided(0.0)

    monkeypatch.setattr(search, "solve", only_the_last_pair)
    plan = search.find_plan(request, time_limit_s=60, gap=0)
    assert len(calls) > 1 and plan.solver
    assert plan.solver.status == "time limit"
    assert plan.solver.bound <= brute_force(EASY).best_s
    assert plan.solver.gap == pytest.approx(1 - plan.solver.bound / plan.solver.objective)
    assert plan.solver.objective == pytest.approx(brute_force(EASY).pair_best_s[1, 1], rel=1e-9)


def test_no_plan_in_time_is_not_called_infeasible() -> None:
    with pytest.raises(HeteroInferError, match="time_limit_s") as raised:
        search.find_plan(random_request(EASY), time_limit_s=0, gap=0)
    assert not isinstance(raised.value, InfeasibleError)


def with_memory(memory_bytes: list[int]):  # type: ignore[no-untyped-def]
    request = random_request(EASY)
    devices = tuple(
        replace(device, memory_bytes=size) for device, size in zip(request.cluster.devices, memory_bytes, strict=True)
    )
    return replace(request, cluster=replace(request.cluster, devices=devices))


def test_a_device_too_small_for_one_layer_is_named_with_what_it_lacks() -> None:
    count = len(random_request(EASY).cluster.devices)
    with pytest.raises(InfeasibleError, match=r"stage 1 .* lacks 0\.\d MiB; lower batch_size"):
        search.find_plan(with_memory([2**30] + [2**10] * (count - 1)), time_limit_s=60, gap=0)


def test_adding_the_missing_memory_is_enough() -> None:
    request = random_request(EASY)
    stages = build_problem(request, 1, 1).stages
    one_each = [min(stage.used_bytes({choice: 1}) for choice in stage.choices) for stage in stages]
    with pytest.raises(InfeasibleError, match="lowest bits the devices hold 1 \\+ 1") as raised:
        search.find_plan(with_memory(one_each), time_limit_s=60, gap=0)
    words = str(raised.value).split()
    stage = int(words[words.index("stage") + 1])
    one_each[stage] += math.ceil(float(words[words.index("lacks") + 1]) * 2**20)
    assert search.find_plan(with_memory(one_each), time_limit_s=60, gap=0)


def test_a_quality_limit_out_of_reach_is_said_to_be_the_reason() -> None:
    request = replace(random_request(EASY), omega_limit=0.0, choices=(EIGHT,))
    sensitivity = replace(request.sensitivity, choices=(EIGHT,), omega=((0.1,),) * request.model.num_hidden_layers)
    with pytest.raises(InfeasibleError, match=r"quality limit .* max_perplexity_increase"):
        search.find_plan(replace(request, sensitivity=sensitivity), time_limit_s=60, gap=0)


def test_the_estimate_agrees_with_the_closed_form_about_what_the_plan_costs() -> None:
    plan = search.find_plan(random_request(EASY), time_limit_s=60, gap=0)
    estimate = plan.estimate
    assert estimate
    assert estimate.total_s == pytest.approx(estimate.closed_form_s, rel=0.3)
    produced = plan.workload.batch_size * plan.workload.new_tokens
    assert estimate.tokens_per_s == pytest.approx(produced / estimate.total_s)
    assert len(estimate.stage_seconds) == len(estimate.memory_bytes) == len(plan.stages)
    assert set(estimate.memory_bytes[0]) == {"weights", "kv_cache", "workspace"}
    for stage, parts in enumerate(estimate.memory_bytes):
        assert sum(parts.values()) <= plan.device_of(stage).memory_bytes


def test_more_devices_than_layers_is_refused_before_planning() -> None:
    request = random_request(EASY)
    devices = tuple(replace(request.cluster.devices[0], slot=slot) for slot in range(9))
    with pytest.raises(InputError, match=r"leave . devices out"):
        search.find_plan(replace(request, cluster=replace(request.cluster, devices=devices)), time_limit_s=1, gap=0.0)


def test_a_choice_without_an_indicator_is_refused_before_planning() -> None:
    request = random_request(EASY)
    with pytest.raises(InputError, match="lacks 8g128 bits"):
        replace(request, choices=(replace(EIGHT, group_size=128),))

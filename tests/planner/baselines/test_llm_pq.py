"""LLM-PQ's ILP finds the least of the authors' objective, over their orders and sizes; the heuristic stays above."""

import itertools
import math
from dataclasses import replace

import pytest

from hetero_infer.bench.planner.tiny import random_request
from hetero_infer.planner.baselines.llm_pq import orders
from hetero_infer.planner.baselines.llm_pq_heuristic import llm_pq_heuristic
from hetero_infer.planner.baselines.llm_pq_ilp import run_llm_pq_ilp
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.search import find_plan
from hetero_infer.spec import Device, Objective, Phase, Plan

from .enumeration import assignments, at_sizes, omega_of, phase_costs


def their_seconds(request: PlanRequest, plan: Plan) -> float:
    """Σ cp + (mp - 1) max cp + Σ cd + (n - 1)(md - 1) max cd, links being stations."""
    total, new_tokens = 0.0, request.workload.new_tokens
    for phase in Phase:
        costs = phase_costs(request, plan, phase)
        stations = [*costs.compute_s, *costs.send_s, costs.return_s]
        times = 1 if phase is Phase.PREFILL else new_tokens - 1
        total += sum(stations) * min(1, times) + times * (costs.micro_batches - 1) * max(stations)
    return total


def least_seconds(request: PlanRequest) -> float:
    devices, workload = request.cluster.devices, request.workload
    decode_size = math.ceil(workload.batch_size / len(devices))
    best = math.inf
    for order in orders(devices):
        for stages in assignments(request, order):
            if omega_of(request, [c for _, choices in stages for c in choices]) > request.omega_limit:
                continue
            for size in (size for size in range(1, decode_size + 1) if decode_size % size == 0):
                plan = at_sizes(request, stages, size, decode_size)
                best = min(best, their_seconds(request, plan) if plan else math.inf)
    return best


@pytest.mark.parametrize("seed", range(24))
def test_the_ilp_finds_the_least_of_the_authors_seconds(seed: int) -> None:
    request = random_request(seed)
    least, run, heuristic = least_seconds(request), run_llm_pq_ilp(request, time_limit_s=60), llm_pq_heuristic(request)
    if math.isinf(least):
        assert run.plan is None and run.status == "infeasible" and isinstance(heuristic, NoPlan)
        return
    assert run.plan and run.plan.solver and run.status == "optimal"
    assert run.plan.solver.objective == pytest.approx(their_seconds(request, run.plan), rel=1e-12)
    assert run.plan.solver.bound <= least * (1 + 1e-9) and run.plan.solver.objective <= least * (1 + 1.1e-4)
    ours = find_plan(replace(request, objective=Objective.LLM_PQ), time_limit_s=60, gap=0).solver
    assert ours and "LLM-PQ" in ours.name and ours.objective <= run.plan.solver.objective * (1 + 1e-9)
    assert isinstance(heuristic, NoPlan) or their_seconds(request, heuristic) >= least * (1 - 1e-9)


def test_types_stand_together_in_every_order() -> None:
    devices = [Device("a", slot, gpu, 1) for slot, gpu in enumerate(("t4", "v100-32", "t4", "a100-40"))]
    found = {tuple(device.type for device in order) for order in orders(devices)}
    assert found == {
        tuple(gpu for name in types for gpu in [name] * (2 if name == "t4" else 1))
        for types in itertools.permutations(("t4", "v100-32", "a100-40"))
    }


def test_an_ilp_without_time_says_so_and_has_no_plan() -> None:
    run = run_llm_pq_ilp(random_request(0), time_limit_s=0)
    assert (run.plan, run.status, run.gap) == (None, "time limit", None)

"""HiGHS's four answers stay four answers."""

import math
from dataclasses import replace

import pytest
from pyomo.contrib.solver.solvers.highs import Highs

from hetero_infer.bench.planner.tiny import (
    EIGHT,
    FOUR,
    LOSS,
    THREE,
    UNQUANTISED,
    PlanRequest,
    RandomLatency,
    random_request,
)
from hetero_infer.planner.exact.branch_and_bound import BranchAndBound
from hetero_infer.planner.exact.search_space import SearchSpace
from hetero_infer.planner.formulation import count_formulation
from hetero_infer.planner.problem import PlanningProblem, build_problem
from hetero_infer.planner.search import with_devices
from hetero_infer.planner.solver import Infeasible, Solution, Undecided, solve
from hetero_infer.spec import Device, SensitivityTable


def wide_request(num_layers: int, num_devices: int) -> PlanRequest:
    """Too large to solve at a glance."""
    request = random_request(3)
    choices = (THREE, FOUR, EIGHT, UNQUANTISED)
    devices = tuple(Device("a", j, "cpu", 10**6 + 170_000 * j, 1 + 0.37 * j) for j in range(num_devices))
    omega = tuple(tuple(LOSS[choice] * (1 + 0.01 * layer) for choice in choices) for layer in range(num_layers))
    return replace(
        request,
        model=replace(request.model, num_hidden_layers=num_layers),
        cluster=replace(request.cluster, devices=devices),
        workload=replace(request.workload, batch_size=4, new_tokens=20),
        latency=RandomLatency(1),
        choices=choices,
        sensitivity=SensitivityTable("random", "0", "0", "nats", choices, omega),
        omega_limit=0.2 * num_layers,
    )


@pytest.fixture(scope="module")
def wide() -> PlanningProblem:
    return build_problem(wide_request(30, 5), 2, 2)


def test_an_optimum_is_certified(wide: PlanningProblem) -> None:
    solution = solve(wide, time_limit_s=60, gap=1e-4)
    assert isinstance(solution, Solution) and solution.is_optimal
    assert solution.bound_s <= solution.objective_s <= solution.bound_s * (1 + 2e-4)
    assert solution.omega <= wide.omega_limit
    assert [len(stage) > 0 for stage in solution.layers] == [True] * 5


def test_at_the_time_limit_an_incumbent_keeps_its_true_gap(wide: PlanningProblem) -> None:
    optimum = solve(wide, time_limit_s=60, gap=0)
    assert isinstance(optimum, Solution)
    for time_limit_s in (1e-6, 0.05, 0.2):
        outcome = solve(wide, time_limit_s=time_limit_s, gap=0)
        assert isinstance(outcome, Solution | Undecided)
        assert outcome.bound_s <= optimum.objective_s * (1 + 1e-9)
        if isinstance(outcome, Solution):
            assert outcome.objective_s >= optimum.objective_s * (1 - 1e-9)
    assert isinstance(solve(wide, time_limit_s=1e-6, gap=0), Undecided)


def test_infeasible_is_not_a_time_limit(wide: PlanningProblem) -> None:
    assert solve(replace(wide, omega_limit=0.0), time_limit_s=60, gap=0) == Infeasible()


def test_a_cutoff_below_the_optimum_leaves_nothing(wide: PlanningProblem) -> None:
    optimum = solve(wide, time_limit_s=60, gap=1e-4)
    assert isinstance(optimum, Solution)
    assert solve(wide, time_limit_s=60, gap=0, cutoff_s=optimum.bound_s * 0.999) == Infeasible()


@pytest.mark.parametrize("seed", range(12))
def test_the_model_of_the_winner_holds_the_winner(seed: int) -> None:
    """The search and the Pyomo model mean the same plans: fixed to the winner, it is feasible and costs as much."""
    request = random_request(seed)
    space = SearchSpace(request)
    found = BranchAndBound(space, 0.0).run(math.inf)
    if found.pipeline is None:
        return
    problem, winner = with_devices(space, found.sizes, found.pipeline)
    model = count_formulation(problem, problem.typical_s)
    for j, (stage, layers, ends) in enumerate(zip(problem.stages, winner.layers, winner.ends, strict=True)):
        for b, choice in enumerate(stage.choices):
            model.n[j, b].fix(layers.count(choice))
        for e, way in enumerate(stage.ends):
            model.e[j, e].fix(int(way is ends))
    results = Highs().solve(model, rel_gap=0.0)
    assert results.incumbent_objective * problem.typical_s == pytest.approx(found.seconds, rel=1e-7)

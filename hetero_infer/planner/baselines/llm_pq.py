"""What LLM-PQ's ILP and its heuristic share: the orders and sizes they look at, and what they take for the time.

The rules are those of the authors' published code (algo/llm_pq.py, algo/llm_pq_heuristic.py).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hetero_infer.planner.baselines.draft import with_highest_ends
from hetero_infer.planner.problem import LayerChoices, PlanningProblem, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.planner.solver import count_choices
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.objective import Objective
from hetero_infer.spec.plan import num_micro_batches

MOST_ORDERS = 24  # all of four types; the authors have clusters of two


def candidates(request: PlanRequest) -> list[PlanningProblem]:
    """Every device order with every prefill size; all devices, ξ = ⌈B/N⌉ sequences in decode, η a divisor of ξ.

    Their objective is the authors': Σ cp + (mp - 1) · max cp + Σ cd + (n - 1)(md - 1) · max cd. Of five types or more
    the first `MOST_ORDERS` count.
    """
    theirs = replace(with_highest_ends(request), objective=Objective.LLM_PQ)
    devices = request.cluster.devices
    if len(devices) > request.model.num_hidden_layers:
        return []
    decode_size = num_micro_batches(request.workload.batch_size, len(devices))
    prefill_sizes = [size for size in range(1, decode_size + 1) if decode_size % size == 0]
    some_orders = itertools.islice(orders(devices), MOST_ORDERS)
    problems = (build_problem(theirs, size, decode_size, order) for order in some_orders for size in prefill_sizes)
    return [problem for problem in problems if all(stage.ends for stage in problem.stages)]


def orders(devices: Sequence[Device]) -> Iterator[tuple[Device, ...]]:
    """The devices of a type stand together; every order of the types."""
    types = list(dict.fromkeys(device.type for device in devices))
    for order in itertools.permutations(types):
        yield tuple(device for name in order for device in devices if device.type == name)


def their_seconds(problem: PlanningProblem, layers: LayerChoices) -> float:
    """The authors' time of a plan with these layers on each stage."""
    ends = [stage.ends[0] for stage in problem.stages]
    return problem.closed_form_s([count_choices(stage) for stage in layers], ends)

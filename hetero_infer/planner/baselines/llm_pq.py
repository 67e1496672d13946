"""What LLM-PQ's ILP and its heuristic share: the orders and sizes they look at, and what they take for the time.

The rules are those of the authors' published code (algo/llm_pq.py, algo/llm_pq_heuristic.py).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hetero_infer.planner.problem import Counts, PlanningProblem, build_problem
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.workload import Phase


def candidates(request: PlanRequest) -> list[PlanningProblem]:
    """Every device order with every prefill size; all devices, ξ = ⌈B/N⌉ sequences in decode, η a divisor of ξ."""
    devices = request.cluster.devices
    decode_size = num_micro_batches(request.workload.batch_size, len(devices))
    prefill_sizes = [size for size in range(1, decode_size + 1) if decode_size % size == 0]
    return [
        build_problem(_in_order(request, order), size, decode_size)
        for order in orders(devices)
        for size in prefill_sizes
    ]


def orders(devices: Sequence[Device]) -> Iterator[tuple[Device, ...]]:
    """The devices of a type stand together; every order of the types."""
    types = list(dict.fromkeys(device.type for device in devices))
    for order in itertools.permutations(types):
        yield tuple(device for name in order for device in devices if device.type == name)


def weights(problem: PlanningProblem) -> tuple[Mapping[Phase, float], Mapping[Phase, float]]:
    """Of a pass and of the slowest station: Σ cp + (mp - 1) · max cp + Σ cd + (n - 1)(md - 1) · max cd.

    With one decode micro-batch a single token is counted, as the authors' code does.
    """
    slowest = {
        Phase.PREFILL: problem.micro_batches[Phase.PREFILL] - 1,
        Phase.DECODE: (problem.new_tokens - 1) * (problem.micro_batches[Phase.DECODE] - 1),
    }
    return {Phase.PREFILL: 1, Phase.DECODE: min(1, problem.new_tokens - 1)}, slowest


def their_seconds(problem: PlanningProblem, counts: Sequence[Counts]) -> float:
    """The authors' time of a plan with these layers on each stage."""
    passes, slowest = weights(problem)
    costs = {phase: problem.phase_costs(phase, counts) for phase in Phase}
    return sum(passes[phase] * costs[phase].pass_s + slowest[phase] * costs[phase].slowest_s for phase in Phase)


def _in_order(request: PlanRequest, devices: tuple[Device, ...]) -> PlanRequest:
    return replace(request, cluster=replace(request.cluster, devices=devices))

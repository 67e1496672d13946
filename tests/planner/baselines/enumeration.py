"""Every partition of a tiny request, with costs asked of the latency model and `cost/memory.py` and of nobody else."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from hetero_infer.cost.memory import plan_memory
from hetero_infer.planner.baselines.draft import Stages, draft
from hetero_infer.planner.estimate import PlanCosts
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import Choice, Device, Phase, Plan


def compositions(num_layers: int, num_stages: int) -> Iterator[tuple[int, ...]]:
    for inner in itertools.combinations(range(1, num_layers), num_stages - 1):
        cuts = (0, *inner, num_layers)
        yield tuple(stop - start for start, stop in itertools.pairwise(cuts))


def assignments(request: PlanRequest, devices: Sequence[Device]) -> Iterator[Stages]:
    """Every partition over all of `devices` in their order, with every choice for every layer."""
    num_layers = request.model.num_hidden_layers
    for counts in compositions(num_layers, len(devices)):
        for choices in itertools.product(request.choices, repeat=num_layers):
            starts = (0, *itertools.accumulate(counts))
            yield [
                (device, choices[start:stop])
                for device, (start, stop) in zip(devices, itertools.pairwise(starts), strict=True)
            ]


def partitions(request: PlanRequest, choice: Choice) -> Iterator[Stages]:
    """Every partition over every order of every subset of the devices, at one choice."""
    devices, num_layers = request.cluster.devices, request.model.num_hidden_layers
    for num_stages in range(1, len(devices) + 1):
        for order in itertools.permutations(devices, num_stages):
            for counts in compositions(num_layers, num_stages):
                yield [(device, (choice,) * count) for device, count in zip(order, counts, strict=True)]


def can_run(request: PlanRequest, plan: Plan) -> bool:
    """Fits memory, at choices that its devices have."""
    allowed = request.latency.allowed_choices
    devices = [plan.device_of(stage) for stage in range(len(plan.stages))]
    memory = plan_memory(request.model, plan)
    return (
        all(used.total <= device.memory_bytes for used, device in zip(memory, devices, strict=True))
        and bool(allowed(devices[0], (plan.embedding_choice,), "embedding"))
        and bool(allowed(devices[-1], (plan.head_choice,), "head"))
        and all(
            plan.decoder_choices[layer] in allowed(device, request.choices)
            for stage, device in enumerate(devices)
            for layer in plan.decoder_range(stage)
        )
    )


def phase_costs(request: PlanRequest, plan: Plan, phase: Phase):  # type: ignore[no-untyped-def]
    return PlanCosts(plan, request.model, request.cluster, request.latency).of_phase(phase)


def omega_of(request: PlanRequest, choices: Iterable[Choice]) -> float:
    """Of decoder layers."""
    return math.fsum(request.sensitivity.of(layer, choice) for layer, choice in enumerate(choices))


def at_sizes(request: PlanRequest, stages: Stages, prefill_size: int, decode_size: int) -> Plan | None:
    """The plan, if it can run."""
    plan = draft(request, stages, prefill_size, decode_size)
    return plan if can_run(request, plan) else None

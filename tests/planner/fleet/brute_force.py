"""Tiny clusters, and the fastest fleet of each by trying everything.

Every order of every subset of the devices, every cut, choice per layer and micro-batch size is a plan that
`check_plan` judges and `PlanCosts` times; then every way to give disjoint devices a share of the batch.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from hetero_infer.bench.planner.tiny import FOUR, LOSS, RandomLatency
from hetero_infer.cost import memory
from hetero_infer.cost.timeline import decode_seconds, prefill_seconds
from hetero_infer.planner.check import check_plan
from hetero_infer.planner.estimate import PlanCosts
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import UNQUANTISED, Cluster, Device, Link, Phase, SensitivityTable, Workload
from hetero_infer.spec.plan import Plan, QualityPlan, StagePlan
from tests.llama import llama_spec

MOST_REPLICAS = 3


def tiny_request(seed: int) -> PlanRequest:
    """2 to 4 devices of 2 types, 2 or 3 layers, 2 choices; memory and quality that bind now and then."""
    rng = random.Random(seed)
    num_devices, num_layers = rng.choice(((2, 2), (2, 3), (3, 2), (3, 3), (4, 2)))
    model = llama_spec(num_hidden_layers=num_layers, tie_word_embeddings=rng.random() < 0.5)
    workload = Workload(rng.randint(2, 3), rng.choice((8, 40)), rng.choice((1, 2, 12)))
    choices = (FOUR, UNQUANTISED)
    types = {name: rng.uniform(0.5, 1.5) for name in ("cpu", "t4")}
    names = [rng.choice(("cpu", "t4")) for _ in range(num_devices)]
    all_layers = {
        name: memory.stage_memory(
            model,
            workload,
            workload.batch_size,
            workload.batch_size,
            [UNQUANTISED] * num_layers,
            4 if name == "cpu" else 2,
            embedding=UNQUANTISED,
            head=UNQUANTISED,
        ).total
        for name in types
    }
    devices = tuple(Device("a", slot, name, int(types[name] * all_layers[name])) for slot, name in enumerate(names))
    omega = tuple(tuple(LOSS[choice] * rng.uniform(0.2, 2) for choice in choices) for _ in range(num_layers))
    worst = sum(max(row) for row in omega)
    return PlanRequest(
        model=model,
        model_facts={"path": "tiny", "digest": "0", "num_hidden_layers": num_layers},
        cluster=Cluster(devices, Link(2e-4, 1e8)),
        workload=workload,
        latency=RandomLatency(seed),
        sensitivity=SensitivityTable("random", "0", "0", "nats", choices, omega),
        choices=choices,
        omega_limit=math.inf if seed % 3 == 0 else rng.uniform(0.2, 0.9) * worst,
        max_perplexity_increase=0.1,
    )


@cache
def fastest_fleet_s(seed: int) -> float:
    """Infinity where no fleet can serve the batch."""
    request = tiny_request(seed)
    names = [device.name for device in request.cluster.devices]

    @cache
    def pipeline_s(devices: frozenset[str], share: int) -> float:
        orders = itertools.chain.from_iterable(
            itertools.permutations(sorted(devices), length) for length in range(1, len(devices) + 1)
        )
        return min(
            (_seconds(request, plan) for order in orders for plan in _plans(request, order, share)), default=math.inf
        )

    @cache
    def fleet_s(devices: frozenset[str], batch: int, replicas: int) -> float:
        if not batch:
            return 0.0
        if not devices or not replicas:
            return math.inf
        return min(
            max(pipeline_s(frozenset(some), share), fleet_s(devices - set(some), batch - share, replicas - 1))
            for length in range(1, len(devices) + 1)
            for some in itertools.combinations(sorted(devices), length)
            for share in range(1, batch + 1)
        )

    return fleet_s(frozenset(names), request.workload.batch_size, MOST_REPLICAS)


def _plans(request: PlanRequest, order: tuple[str, ...], share: int) -> Iterator[Plan]:
    """Those that keep memory and quality."""
    layers, workload = request.model.num_hidden_layers, replace(request.workload, batch_size=share)
    if len(order) > layers:
        return
    for cuts in itertools.combinations(range(1, layers), len(order) - 1):
        for choices in itertools.product(request.choices, repeat=layers):
            every = (UNQUANTISED, *choices, UNQUANTISED)
            bounds = (0, *(cut + 1 for cut in cuts), layers + 2)
            stages = tuple(
                StagePlan(name, every[start:stop])
                for name, (start, stop) in zip(order, itertools.pairwise(bounds), strict=True)
            )
            for prefill_size, decode_size in itertools.product(workload.micro_batch_sizes, repeat=2):
                plan = Plan(
                    request.model_facts,
                    request.cluster.devices,
                    workload,
                    stages,
                    prefill_size,
                    decode_size,
                    quality=QualityPlan(0.1, request.omega_limit, 0.0, "nats"),
                )
                if not check_plan(plan, request.model, request.sensitivity):
                    yield plan


def _seconds(request: PlanRequest, plan: Plan) -> float:
    costs = PlanCosts(plan, request.model, request.cluster, request.latency)
    return prefill_seconds(costs.of_phase(Phase.PREFILL)) + decode_seconds(
        costs.of_phase(Phase.DECODE), plan.workload.new_tokens
    )

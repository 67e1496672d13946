"""Small random planning requests, and the exhaustive search that the MILP must agree with.

The brute force shares no coefficient with the planner: it asks the latency model and `cost/memory.py` itself.
"""

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from hetero_infer.cost import memory
from hetero_infer.cost.latency import LayerKind, Source
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec import (
    UNQUANTISED,
    Choice,
    Cluster,
    Device,
    Link,
    ModelSpec,
    Phase,
    SensitivityTable,
    Workload,
)
from tests.llama import llama_spec

THREE, FOUR, EIGHT = Choice(3, 64), Choice(4, 64), Choice(8, 64)
LOSS = {THREE: 1.0, FOUR: 0.3, EIGHT: 0.05, UNQUANTISED: 0.0}


@dataclass(frozen=True)
class RandomLatency:
    """Seconds that are affine in the work, with random coefficients per (device type, kind, choice, phase)."""

    seed: int
    refused: frozenset[tuple[str, Choice]] = field(default_factory=frozenset)

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        return tuple(choice for choice in choices if (device.type, choice) not in self.refused)

    def layer_seconds(
        self,
        device: Device,
        kind: str,
        choice: Choice,
        phase: Phase,
        batch: int,
        input_tokens: int,
        past_tokens: int,
    ) -> float:
        rng = random.Random(f"{self.seed} {device.type} {kind} {choice} {phase}")
        fixed, per_token, per_past = rng.uniform(1e-4, 2e-3), rng.uniform(1e-6, 3e-5), rng.uniform(0, 2e-6)
        work = fixed + per_token * batch * input_tokens + per_past * batch * past_tokens
        return work * (1 if kind == "decoder" else 0.3) * device.slowdown

    def source(self, device: Device) -> Source:
        return Source("random")


def random_request(seed: int) -> PlanRequest:
    """1 to 3 devices, 3 to 5 layers, 2 or 3 choices; memory that binds; every third without a quality limit."""
    rng = random.Random(seed)
    num_layers, num_devices = rng.randint(3, 5), rng.randint(1, 3)
    model = llama_spec(num_hidden_layers=num_layers, tie_word_embeddings=rng.random() < 0.5)
    workload = Workload(rng.randint(1, 4), rng.choice((8, 40)), rng.choice((1, 2, 3, 12)))
    choices = tuple(sorted(rng.sample((THREE, FOUR, EIGHT, UNQUANTISED), rng.randint(2, 3))))
    types = [rng.choice(("cpu", "t4")) for _ in range(num_devices)]
    refused = frozenset({("t4", rng.choice(choices))} if rng.random() < 0.3 else ())
    devices = tuple(
        _device(rng, slot, device_type, model, workload, choices, num_devices) for slot, device_type in enumerate(types)
    )
    links = {("a", "b"): Link(1e-3, 1e7), ("b", "a"): Link(3e-3, 1e6)}
    omega = tuple(tuple(LOSS[choice] * rng.uniform(0.2, 2) for choice in choices) for _ in range(num_layers))
    worst = sum(max(row) for row in omega)
    limit = math.inf if seed % 3 == 0 else rng.uniform(0.1, 0.8) * worst
    return PlanRequest(
        model=model,
        model_facts={"path": "tiny", "digest": "0", "num_hidden_layers": num_layers},
        cluster=Cluster(devices, Link(2e-4, 1e8), links),
        workload=workload,
        latency=RandomLatency(seed, refused),
        sensitivity=SensitivityTable("random", "0", "0", "nats", choices, omega),
        choices=choices,
        omega_limit=limit,
        max_perplexity_increase=0.1,
    )


def _device(
    rng: random.Random,
    slot: int,
    device_type: str,
    model: ModelSpec,
    workload: Workload,
    choices: tuple[Choice, ...],
    num_devices: int,
) -> Device:
    element_bytes = 4 if device_type == "cpu" else 2
    layers = -(-model.num_hidden_layers // num_devices)
    needs = [
        memory.stage_memory(
            model,
            workload,
            workload.batch_size,
            workload.batch_size,
            [choice] * layers,
            element_bytes,
            embedding=UNQUANTISED if slot == 0 else None,
            head=UNQUANTISED if slot == num_devices - 1 else None,
        ).total
        for choice in (choices[0], choices[-1])
    ]
    memory_bytes = int(rng.uniform(0.75 * min(needs), 1.2 * max(needs)))
    return Device(rng.choice("ab"), slot, device_type, memory_bytes, rng.choice((1.0, 2.5)) if slot else 1.0)


@dataclass(frozen=True)
class Exhaustive:
    """`best_s` over everything; `least_omega[η, ξ]` among the plans of that pair within 1e-9 of `best_s`."""

    best_s: float
    least_omega: dict[tuple[int, int], float]
    pair_best_s: dict[tuple[int, int], float]


@cache
def brute_force(seed: int) -> Exhaustive:
    request = random_request(seed)
    sizes = request.workload.micro_batch_sizes
    plans = {pair: list(_plans(request, *pair)) for pair in itertools.product(sizes, sizes)}
    pair_best_s = {pair: min((seconds for seconds, _ in found), default=math.inf) for pair, found in plans.items()}
    best_s = min(pair_best_s.values())
    least_omega = {
        pair: min(omega for seconds, omega in found if seconds <= best_s * (1 + 1e-9))
        for pair, found in plans.items()
        if pair_best_s[pair] <= best_s * (1 + 1e-9) < math.inf
    }
    return Exhaustive(best_s, least_omega, pair_best_s)


def _plans(request: PlanRequest, prefill_size: int, decode_size: int) -> Iterable[tuple[float, float]]:
    """Seconds and Σω of every plan that fits memory and quality."""
    devices, num_layers = request.cluster.devices, request.model.num_hidden_layers
    seconds_of = _stage_seconds(request, prefill_size, decode_size)
    for inner in itertools.combinations(range(1, num_layers), len(devices) - 1):
        cuts = (0, *inner, num_layers)
        for choices in itertools.product(request.choices, repeat=num_layers):
            omega = sum(request.sensitivity.of(layer, choice) for layer, choice in enumerate(choices))
            if omega > request.omega_limit:
                continue
            stages = [choices[start:stop] for start, stop in itertools.pairwise(cuts)]
            costs = [seconds_of(stage, tuple(sorted(layers))) for stage, layers in enumerate(stages)]
            if None not in costs:
                yield _closed_form(request, prefill_size, decode_size, [cost for cost in costs if cost]), omega


def _stage_seconds(request: PlanRequest, prefill_size: int, decode_size: int):  # type: ignore[no-untyped-def]
    """Prefill and decode seconds of a stage, or None where it may not stand."""
    model, workload, last = request.model, request.workload, len(request.cluster.devices) - 1

    @cache
    def of(stage: int, layers: tuple[Choice, ...]) -> tuple[float, float] | None:
        device = request.cluster.devices[stage]
        allowed = request.latency.allowed_choices(device, request.choices)
        if any(choice not in allowed for choice in layers):
            return None
        ends = {"embedding": UNQUANTISED if stage == 0 else None, "head": UNQUANTISED if stage == last else None}
        sizes = (model, workload, prefill_size, decode_size)
        used = memory.stage_memory(*sizes, layers, device.element_bytes, **ends)
        if used.total > device.memory_bytes:
            return None
        kinds = [("embedding", UNQUANTISED)] * (stage == 0) + [("head", UNQUANTISED)] * (stage == last)
        kinds += [("decoder", choice) for choice in layers]
        past = workload.prompt_tokens + (workload.new_tokens - 1) // 2
        prefill = (Phase.PREFILL, prefill_size, workload.prompt_tokens, 0)
        decode = (Phase.DECODE, decode_size, 1, past)
        return (
            sum(request.latency.layer_seconds(device, kind, choice, *prefill) for kind, choice in kinds),
            sum(request.latency.layer_seconds(device, kind, choice, *decode) for kind, choice in kinds),
        )

    return of


def _closed_form(request: PlanRequest, prefill_size: int, decode_size: int, costs: list[tuple[float, float]]) -> float:
    workload, devices, link = request.workload, request.cluster.devices, request.cluster.link
    total = 0.0
    for phase, size in enumerate((prefill_size, decode_size)):
        tokens = size * (1 if phase else workload.prompt_tokens)
        header = -(-(12 + 12 * size + (0 if phase else 64 * size + 4 * tokens)) // 64) * 64
        sends = [
            link(a, b).seconds(tokens * request.model.hidden_size * a.element_bytes + header)
            for a, b in itertools.pairwise(devices)
        ]
        back = link(devices[-1], devices[0]).seconds(8 * size + 32) if sends else 0.0
        stations = [*(cost[phase] for cost in costs), *sends, back]
        count = math.ceil(workload.batch_size / size)
        drained = sum(stations) + (count - 1) * max(stations)
        if phase == 0:
            total += drained
        elif workload.new_tokens > 1:
            total += (workload.new_tokens - 2) * max(count * max(stations), sum(stations)) + drained
    return total

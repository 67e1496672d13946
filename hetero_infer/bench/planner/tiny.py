"""Small random planning requests, and the exhaustive search that the planner must agree with.

The brute force shares no coefficient with the planner: it asks the latency model and `cost/memory.py` itself.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
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
    Objective,
    Phase,
    SensitivityTable,
    Workload,
)

THREE, FOUR, EIGHT = Choice(3, 64), Choice(4, 64), Choice(8, 64)
LOSS = {THREE: 1.0, FOUR: 0.3, EIGHT: 0.05, UNQUANTISED: 0.0}
END_LOSS = {EIGHT: 0.04, UNQUANTISED: 0.0}
MODEL = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class RandomLatency:
    """Seconds that are affine in the work, with random coefficients per (device type, kind, choice, phase)."""

    seed: int
    refused: frozenset[tuple[str, Choice]] = field(default_factory=frozenset)

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        return tuple(choice for choice in choices if kind != "decoder" or (device.type, choice) not in self.refused)

    def layer_seconds(
        self,
        device: Device,
        kind: LayerKind,
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
    """1 to 3 devices, 2 to 4 layers, 2 or 3 choices; memory that binds; every third without a quality limit, every
    fourth with choices for the ends, every fifth with links that differ, every seventh
    for LLM-PQ's objective and for a steady stream."""
    rng = random.Random(seed)
    num_layers, num_devices = rng.randint(2, 4), rng.randint(1, 3)
    config = MODEL | {"num_hidden_layers": num_layers, "tie_word_embeddings": rng.random() < 0.5}
    model = ModelSpec.from_config(config, "tiny")
    workload = Workload(rng.randint(1, 4), rng.choice((8, 40)), rng.choice((1, 2, 3, 12)))
    choices = tuple(sorted(rng.sample((THREE, FOUR, EIGHT, UNQUANTISED), rng.randint(2, 3))))
    types = [rng.choice(("cpu", "t4")) for _ in range(num_devices)]
    refused = frozenset({("t4", rng.choice(choices))} if rng.random() < 0.3 else ())
    devices = tuple(
        _device(rng, slot, device_type, model, workload, choices, num_devices) for slot, device_type in enumerate(types)
    )
    links = {("a", "b"): Link(1e-3, 1e7), ("b", "a"): Link(3e-3, 1e6)} if seed % 5 == 0 else {}
    omega = tuple(tuple(LOSS[choice] * rng.uniform(0.2, 2) for choice in choices) for _ in range(num_layers))
    worst = sum(max(row) for row in omega)
    limit = math.inf if seed % 3 == 0 else rng.uniform(0.1, 0.8) * worst
    end_choices = tuple(END_LOSS) if seed % 4 == 0 else (UNQUANTISED,)
    ends = [{choice: END_LOSS[choice] * rng.uniform(0.2, 2) for choice in end_choices} for _ in range(2)]
    return PlanRequest(
        model=model,
        model_facts={"path": "tiny", "digest": "0", "num_hidden_layers": num_layers},
        cluster=Cluster(devices, Link(2e-4, 1e8), links),
        workload=workload,
        latency=RandomLatency(seed, refused),
        sensitivity=SensitivityTable("random", "0", "0", "nats", choices, omega, *ends),
        choices=choices,
        omega_limit=limit,
        max_perplexity_increase=0.1,
        embedding_choices=end_choices,
        head_choices=end_choices,
        objective={3: Objective.LLM_PQ, 5: Objective.STEADY}.get(seed % 7, Objective.RING),
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
    """`best_s` over everything, and by pair (η, ξ)."""

    best_s: float
    pair_best_s: Mapping[tuple[int, int], float]


@cache
def brute_force(seed: int) -> Exhaustive:
    """Of `random_request(seed)`."""
    return exhaust(random_request(seed))


def exhaust(request: PlanRequest) -> Exhaustive:
    """Every order of every subset of devices, every cut, every choice."""
    sizes = request.workload.micro_batch_sizes
    pair_best_s = {
        pair: min(_OnePair(request, *pair).seconds(), default=math.inf) for pair in itertools.product(sizes, sizes)
    }
    return Exhaustive(min(pair_best_s.values()), pair_best_s)


class _OnePair:
    """All plans with one pair of micro-batch sizes."""

    def __init__(self, request: PlanRequest, prefill_size: int, decode_size: int) -> None:
        self._request = request
        self._sizes = {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size}
        self._stage = cache(self._stage_seconds)
        self._least_omega = cache(self._omega_by_counts)

    def seconds(self) -> Iterator[float]:
        """Of each plan that fits memory and quality."""
        request, num_layers = self._request, self._request.model.num_hidden_layers
        devices = request.cluster.devices
        ends = list(itertools.product(request.embedding_choices, request.head_choices))
        for count in range(1, len(devices) + 1):
            for order in itertools.permutations(devices, count):
                for inner in itertools.combinations(range(1, num_layers), count - 1):
                    cuts = (0, *inner, num_layers)
                    for embedding, head in ends:
                        yield from self._of_cuts(order, cuts, embedding, head)

    def _of_cuts(
        self, order: tuple[Device, ...], cuts: tuple[int, ...], embedding: Choice, head: Choice
    ) -> Iterator[float]:
        request, last = self._request, len(order) - 1
        lost = request.sensitivity.of_end("embedding", embedding) + request.sensitivity.of_end("head", head)
        ways = [self._least_omega(start, stop).items() for start, stop in itertools.pairwise(cuts)]
        for layers in itertools.product(*ways):
            if lost + sum(omega for _, omega in layers) > request.omega_limit:
                continue
            stages = [
                self._stage(device, counts, embedding if j == 0 else None, head if j == last else None)
                for j, (device, (counts, _)) in enumerate(zip(order, layers, strict=True))
            ]
            costs = [cost for cost in stages if cost]
            if len(costs) == len(stages):
                yield self._closed_form(order, costs)

    def _omega_by_counts(self, start: int, stop: int) -> Mapping[tuple[Choice, ...], float]:
        """The least Σω of an interval by which choices are in it, whatever their order."""
        least: dict[tuple[Choice, ...], float] = {}
        for choices in itertools.product(self._request.choices, repeat=stop - start):
            omega = sum(self._request.sensitivity.of(start + i, choice) for i, choice in enumerate(choices))
            counts = tuple(sorted(choices))
            least[counts] = min(omega, least.get(counts, math.inf))
        return least

    def _stage_seconds(
        self, device: Device, layers: tuple[Choice, ...], embedding: Choice | None, head: Choice | None
    ) -> tuple[float, float] | None:
        """In prefill and decode, or None where such a stage may not stand."""
        request, workload = self._request, self._request.workload
        allowed = request.latency.allowed_choices(device, request.choices)
        if any(choice not in allowed for choice in layers):
            return None
        used = memory.stage_memory(
            request.model,
            request.admitted,
            *self._sizes.values(),
            layers,
            device.element_bytes,
            embedding=embedding,
            head=head,
        )
        if used.total > device.memory_bytes:
            return None
        kinds = [(kind, choice) for kind, choice in (("embedding", embedding), ("head", head)) if choice]
        kinds += [("decoder", choice) for choice in layers]
        past = workload.prompt_tokens + (workload.new_tokens - 1) // 2
        prefill = (Phase.PREFILL, self._sizes[Phase.PREFILL], workload.prompt_tokens, 0)
        decode = (Phase.DECODE, self._sizes[Phase.DECODE], 1, past)
        of = request.latency.layer_seconds
        return (
            sum(of(device, kind, choice, *prefill) for kind, choice in kinds),  # type: ignore[arg-type]
            sum(of(device, kind, choice, *decode) for kind, choice in kinds),  # type: ignore[arg-type]
        )

    def _closed_form(self, order: tuple[Device, ...], costs: list[tuple[float, float]]) -> float:
        workload, objective = self._request.workload, self._request.objective
        prefill, decode = (self._stations(phase, order, costs) for phase in Phase)
        mp, md = (math.ceil(workload.batch_size / size) for size in self._sizes.values())
        if objective is Objective.STEADY:
            prefills = workload.batch_size / workload.new_tokens / self._sizes[Phase.PREFILL]
            alone = min(1, prefills) * max(0, 1 - prefills / md)
            both = [d + (prefills - alone) / md * p for p, d in zip(prefill, decode, strict=True)]
            return max(md * max(both), sum(both)) + alone * sum(prefill)
        total = sum(prefill) + (mp - 1) * max(prefill)
        if objective is Objective.LLM_PQ:
            rounds = workload.new_tokens - 1
            return total + min(1, rounds) * sum(decode) + rounds * (md - 1) * max(decode)
        if workload.new_tokens > 1:
            total += (workload.new_tokens - 2) * max(md * max(decode), sum(decode))
            total += sum(decode) + (md - 1) * max(decode)
        return total

    def _stations(self, phase: Phase, order: tuple[Device, ...], costs: list[tuple[float, float]]) -> list[float]:
        size, link = self._sizes[phase], self._request.cluster.link
        is_prefill = phase is Phase.PREFILL
        tokens = size * (self._request.workload.prompt_tokens if is_prefill else 1)
        header = -(-(12 + 12 * size + (68 * size + 4 * tokens if is_prefill else 0)) // 64) * 64
        sends = [
            link(a, b).seconds(tokens * self._request.model.hidden_size * a.element_bytes + header)
            for a, b in itertools.pairwise(order)
        ]
        back = link(order[-1], order[0]).seconds(8 * size + 32) if sends else 0.0
        return [*(cost[0 if is_prefill else 1] for cost in costs), *sends, back]

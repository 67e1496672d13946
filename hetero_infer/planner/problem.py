"""`PlanningProblem`: every coefficient of the MILP, with its unit, for one pair of micro-batch sizes (η, ξ)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetero_infer.cost import memory
from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.cost.latency import LayerKind
from hetero_infer.cost.timeline import PhaseCosts, decode_seconds, prefill_seconds
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.plan import num_micro_batches
from hetero_infer.spec.workload import Phase, Workload

Counts = Mapping[Choice, float]  # decoder layers of a stage, by choice
QUALITY_TOLERANCE = 1e-8  # of the largest indicator: a solver's sum may pass Ω by this much
LayerChoices = tuple[tuple[Choice, ...], ...]  # per stage, the choices of its decoder layers in order


@dataclass(frozen=True)
class StageTerms:
    """One stage. What depends on a choice is per decoder layer; `fixed` is what stands there in any case.

    `layer_s` and `fixed_s` are seconds of one full micro-batch, decode at the middle of the generation. `fixed` is
    the embedding on the first stage, the head on the last, and the workspace, of which the buffer to dequantise into
    (`dequantise_bytes`) is there only with a quantised layer. The keys of `layer_bytes` (weights and
    KV cache) are the choices the device may take.
    """

    device: Device
    layer_s: Mapping[Phase, Counts]
    fixed_s: Mapping[Phase, float]
    layer_bytes: Mapping[Choice, int]
    fixed_bytes: int
    dequantise_bytes: int

    @property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(self.layer_bytes)

    @property
    def room_bytes(self) -> int:
        """For decoder layers and, if one of them is quantised, the buffer; the margin is taken off."""
        return memory.without_margin(self.device.memory_bytes) - self.fixed_bytes

    def buffer_bytes(self, choice: Choice) -> int:
        return self.dequantise_bytes if choice.is_quantised else 0

    def most_layers(self, choice: Choice) -> int:
        """That fit at one choice."""
        return max(0, (self.room_bytes - self.buffer_bytes(choice)) // self.layer_bytes[choice])

    @property
    def holds_a_layer(self) -> bool:
        return any(map(self.most_layers, self.choices))

    def compute_s(self, phase: Phase, counts: Counts) -> float:
        return self.fixed_s[phase] + sum(self.layer_s[phase][choice] * count for choice, count in counts.items())

    def used_bytes(self, counts: Mapping[Choice, int]) -> int:
        """With the margin."""
        buffer = max((self.buffer_bytes(choice) for choice, count in counts.items() if count), default=0)
        layers = sum(self.layer_bytes[choice] * count for choice, count in counts.items())
        return memory.with_margin(self.fixed_bytes + buffer + layers)


@dataclass(frozen=True)
class PlanningProblem:
    """`omega[layer]` and `omega_limit` (Ω) are in the sensitivity's unit; `send_s[phase][j]` goes from stage j on."""

    micro_batch_size: Mapping[Phase, int]
    micro_batches: Mapping[Phase, int]
    new_tokens: int
    stages: tuple[StageTerms, ...]
    send_s: Mapping[Phase, tuple[float, ...]]
    return_s: Mapping[Phase, float]
    omega: tuple[Counts, ...]
    omega_limit: float

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.omega)

    @property
    def full_rounds(self) -> int:
        """Decode rounds that take a whole period: n - 2."""
        return max(0, self.new_tokens - 2)

    @property
    def last_rounds(self) -> int:
        """Decode rounds that only drain: 1, or 0 where the prefill gives the only token."""
        return min(1, self.new_tokens - 1)

    @property
    def typical_s(self) -> float:
        """Seconds of a plan with equal stages at their first choice: a scale for solvers, no promise."""
        share = self.num_layers / len(self.stages)
        return self.closed_form_s([{stage.choices[0]: share} for stage in self.stages])

    @property
    def omega_scale(self) -> float:
        """The largest indicator, so that a tolerance can be relative."""
        return max(max(row.values()) for row in self.omega) or 1.0

    def phase_costs(self, phase: Phase, counts: Sequence[Counts]) -> PhaseCosts:
        return PhaseCosts(
            tuple(stage.compute_s(phase, count) for stage, count in zip(self.stages, counts, strict=True)),
            self.send_s[phase],
            self.return_s[phase],
            self.micro_batches[phase],
        )

    def closed_form_s(self, counts: Sequence[Counts]) -> float:
        """The objective: seconds of prefill and decode."""
        return prefill_seconds(self.phase_costs(Phase.PREFILL, counts)) + decode_seconds(
            self.phase_costs(Phase.DECODE, counts), self.new_tokens
        )

    def total_omega(self, layers: LayerChoices) -> float:
        flat = [choice for stage in layers for choice in stage]
        return math.fsum(row[choice] for row, choice in zip(self.omega, flat, strict=True))


def middle_past_tokens(workload: Workload) -> int:
    """Cache entries of a sequence at the middle decode step; the steps have `prompt_tokens` to `cache_tokens - 1`."""
    return workload.prompt_tokens + (workload.new_tokens - 1) // 2


def build_problem(request: PlanRequest, prefill_size: int, decode_size: int) -> PlanningProblem:
    """All coefficients for micro-batches of `prefill_size` (η) and `decode_size` (ξ) sequences."""
    workload, devices = request.workload, request.cluster.devices
    size = {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size}
    tokens = {Phase.PREFILL: prefill_size * workload.prompt_tokens, Phase.DECODE: decode_size}
    link = request.cluster.link
    return PlanningProblem(
        micro_batch_size=size,
        micro_batches={phase: num_micro_batches(workload.batch_size, size[phase]) for phase in Phase},
        new_tokens=workload.new_tokens,
        stages=tuple(_stage_terms(request, stage, size) for stage in range(len(devices))),
        send_s={
            phase: tuple(
                link(source, target).seconds(
                    activation_message_bytes(
                        phase, size[phase], tokens[phase], request.model.hidden_size, source.element_bytes
                    )
                )
                for source, target in itertools.pairwise(devices)
            )
            for phase in Phase
        },
        return_s={
            phase: link(devices[-1], devices[0]).seconds(token_message_bytes(size[phase])) if len(devices) > 1 else 0.0
            for phase in Phase
        },
        omega=tuple(
            {choice: request.sensitivity.of(layer, choice) for choice in request.choices}
            for layer in range(request.model.num_hidden_layers)
        ),
        omega_limit=request.omega_limit,
    )


def _stage_terms(request: PlanRequest, stage: int, size: Mapping[Phase, int]) -> StageTerms:
    model, workload, device = request.model, request.workload, request.cluster.devices[stage]
    is_first, is_last = stage == 0, stage == len(request.cluster.devices) - 1
    choices = request.latency.allowed_choices(device, request.choices)
    if not choices:
        raise InputError(
            f"device {device.name}: the profile has none of {', '.join(map(str, request.choices))} bits on "
            f"{device.type}; run 'hetero-infer measure' on a {device.type} with [quality] choices as they are now"
        )

    def seconds(kind: LayerKind, choice: Choice, phase: Phase) -> float:
        if phase is Phase.PREFILL:
            return request.latency.layer_seconds(device, kind, choice, phase, size[phase], workload.prompt_tokens, 0)
        return request.latency.layer_seconds(device, kind, choice, phase, size[phase], 1, middle_past_tokens(workload))

    ends: list[LayerKind] = []
    if is_first:
        ends.append("embedding")
    if is_last:
        ends.append("head")
    element_bytes = device.element_bytes
    kv_bytes = memory.kv_cache_bytes(model, workload, element_bytes)
    without_buffer, with_buffer = (
        memory.workspace_bytes(
            model,
            workload,
            size[Phase.PREFILL],
            size[Phase.DECODE],
            element_bytes,
            is_first=is_first,
            is_last=is_last,
            dequantises=dequantises,
        )
        for dequantises in (False, True)
    )
    return StageTerms(
        device=device,
        layer_s={phase: {choice: seconds("decoder", choice, phase) for choice in choices} for phase in Phase},
        fixed_s={phase: sum(seconds(kind, UNQUANTISED, phase) for kind in ends) for phase in Phase},
        layer_bytes={choice: memory.decoder_layer_bytes(model, choice, element_bytes) + kv_bytes for choice in choices},
        fixed_bytes=memory.end_layer_bytes(model, is_first, is_last, element_bytes) + without_buffer,
        dequantise_bytes=with_buffer - without_buffer,
    )

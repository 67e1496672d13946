"""`PlanningProblem`: every coefficient of the MILP, with its unit, for one order of devices and one pair (η, ξ)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetero_infer.cost import memory
from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.cost.latency import LayerKind
from hetero_infer.cost.timeline import PhaseCosts
from hetero_infer.planner.objective import ClosedForm, closed_form, shared_prefills
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device, Link
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.sensitivity import ENDS
from hetero_infer.spec.workload import Phase, Workload

Counts = Mapping[Choice, float]  # decoder layers of a stage, by choice
QUALITY_TOLERANCE = 1e-8  # of the largest indicator: a solver's sum may pass Ω by this much
LayerChoices = tuple[tuple[Choice, ...], ...]  # per stage, the choices of its decoder layers in order


@dataclass(frozen=True)
class Ends:
    """Embedding and head of a stage at one choice each, None where they stand elsewhere; `omega` is what they lose."""

    embedding: Choice | None
    head: Choice | None
    seconds: Mapping[Phase, float]
    num_bytes: int
    omega: float

    @property
    def dequantises(self) -> bool:
        """Into a buffer: an embedding only looks rows up."""
        return self.head is not None and self.head.is_quantised


@dataclass(frozen=True)
class StageTerms:
    """One stage. What depends on a choice is per decoder layer.

    `layer_s` are seconds of one full micro-batch, decode at the middle of the generation. The keys of `layer_bytes`
    (weights and KV cache) are the choices the device may take. `workspace_bytes` are there in any case, the buffer to
    dequantise into (`dequantise_bytes`) only with something quantised. `ends` are the ways to store embedding and
    head: exactly one, empty, on a stage between others.
    """

    device: Device
    layer_s: Mapping[Phase, Counts]
    layer_bytes: Mapping[Choice, int]
    workspace_bytes: int
    dequantise_bytes: int
    ends: tuple[Ends, ...]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(self.layer_bytes)

    @property
    def room_bytes(self) -> int:
        """For layers, ends and the buffer; the margin is taken off."""
        return memory.without_margin(self.device.memory_bytes) - self.workspace_bytes

    def buffer_bytes(self, choice: Choice) -> int:
        return self.dequantise_bytes if choice.is_quantised else 0

    def most_layers(self, choice: Choice) -> int:
        """That fit at one choice, with the smallest ends."""
        return max(max(0, self._room_for_layers(choice, ends)) // self.layer_bytes[choice] for ends in self.ends)

    @property
    def holds_a_layer(self) -> bool:
        return any(map(self.most_layers, self.choices))

    def compute_s(self, phase: Phase, counts: Counts, ends: Ends) -> float:
        return ends.seconds[phase] + sum(self.layer_s[phase][choice] * count for choice, count in counts.items())

    def used_bytes(self, counts: Mapping[Choice, int], ends: Ends) -> int:
        """With the margin."""
        dequantises = ends.dequantises or any(choice.is_quantised and count for choice, count in counts.items())
        layers = sum(self.layer_bytes[choice] * count for choice, count in counts.items())
        buffer = self.dequantise_bytes if dequantises else 0
        return memory.with_margin(self.workspace_bytes + ends.num_bytes + buffer + layers)

    def _room_for_layers(self, choice: Choice, ends: Ends) -> int:
        buffer = self.dequantise_bytes if choice.is_quantised or ends.dequantises else 0
        return self.room_bytes - ends.num_bytes - buffer


@dataclass(frozen=True)
class PlanningProblem:
    """`omega[layer]` and `omega_limit` (Ω) are in the sensitivity's unit; `send_s[phase][j]` goes from stage j on."""

    micro_batch_size: Mapping[Phase, int]
    objective: ClosedForm
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
    def typical_s(self) -> float:
        """Seconds of a plan with equal stages at their first choice: a scale for solvers, no promise."""
        share = self.num_layers / len(self.stages)
        counts = [{stage.choices[0]: share} for stage in self.stages]
        return self.closed_form_s(counts, [stage.ends[0] for stage in self.stages])

    @property
    def omega_scale(self) -> float:
        """The largest indicator, so that a tolerance can be relative."""
        ends = (ends.omega for stage in self.stages for ends in stage.ends)
        return max(*(max(row.values()) for row in self.omega), *ends) or 1.0

    def closed_form_s(self, counts: Sequence[Counts], ends: Sequence[Ends]) -> float:
        """The objective: seconds of prefill and decode."""

        def costs(phase: Phase) -> PhaseCosts:
            stages = zip(self.stages, counts, ends, strict=True)
            return PhaseCosts(
                tuple(stage.compute_s(phase, count, end) for stage, count, end in stages),
                self.send_s[phase],
                self.return_s[phase],
                self.objective.micro_batches[phase],
            )

        return self.objective.seconds(costs(Phase.PREFILL), costs(Phase.DECODE))

    def total_omega(self, layers: LayerChoices, ends: Sequence[Ends]) -> float:
        flat = [choice for stage in layers for choice in stage]
        losses = (row[choice] for row, choice in zip(self.omega, flat, strict=True))
        return math.fsum(itertools.chain(losses, (end.omega for end in ends)))


def middle_past_tokens(workload: Workload) -> int:
    """Cache entries of a sequence at the middle decode step; the steps have `prompt_tokens` to `cache_tokens - 1`."""
    return workload.prompt_tokens + (workload.new_tokens - 1) // 2


def build_problem(
    request: PlanRequest, prefill_size: int, decode_size: int, devices: Sequence[Device] = ()
) -> PlanningProblem:
    """All coefficients for micro-batches of `prefill_size` (η) and `decode_size` (ξ) sequences.

    `devices` are the stages in order; all of the cluster's, in its order, where none is named.
    """
    devices = devices or request.cluster.devices
    size = {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size}
    last = len(devices) - 1
    link = request.cluster.link
    sends = [
        send_seconds(request, link(source, target), source, size) for source, target in itertools.pairwise(devices)
    ]
    return PlanningProblem(
        micro_batch_size=size,
        objective=closed_form(request, size),
        stages=tuple(
            stage_terms(request, device, size, is_first=stage == 0, is_last=stage == last)
            for stage, device in enumerate(devices)
        ),
        send_s={phase: tuple(sent[phase] for sent in sends) for phase in Phase},
        return_s=return_seconds(request, link(devices[-1], devices[0]), size) if last else dict.fromkeys(Phase, 0.0),
        omega=omega_rows(request),
        omega_limit=request.omega_limit,
    )


def omega_rows(request: PlanRequest) -> tuple[Counts, ...]:
    """ω of each decoder layer by choice."""
    return tuple(
        {choice: request.sensitivity.of(layer, choice) for choice in request.choices}
        for layer in range(request.model.num_hidden_layers)
    )


def send_seconds(request: PlanRequest, link: Link, source: Device, size: Mapping[Phase, int]) -> Mapping[Phase, float]:
    """A micro-batch of each phase on its way to the next stage."""
    tokens = {Phase.PREFILL: size[Phase.PREFILL] * request.workload.prompt_tokens, Phase.DECODE: size[Phase.DECODE]}
    hidden, element_bytes = request.model.hidden_size, source.element_bytes
    prefill_s, decode_s = (
        link.seconds(activation_message_bytes(phase, size[phase], tokens[phase], hidden, element_bytes))
        for phase in Phase
    )
    return {Phase.PREFILL: prefill_s, Phase.DECODE: decode_s + shared_prefills(request, size) * prefill_s}


def return_seconds(request: PlanRequest, link: Link, size: Mapping[Phase, int]) -> Mapping[Phase, float]:
    """The sampled tokens of a micro-batch of each phase on their way to the first stage."""
    prefill_s, decode_s = (link.seconds(token_message_bytes(size[phase])) for phase in Phase)
    return {Phase.PREFILL: prefill_s, Phase.DECODE: decode_s + shared_prefills(request, size) * prefill_s}


def stage_terms(
    request: PlanRequest, device: Device, size: Mapping[Phase, int], *, is_first: bool, is_last: bool
) -> StageTerms:
    """The coefficients of a stage on `device`, for micro-batches of `size` sequences in each phase."""
    model, workload, shared = request.model, request.workload, shared_prefills(request, size)
    choices = request.latency.allowed_choices(device, request.choices)
    if not choices:
        raise InputError(
            f"device {device.name}: the profile has none of {', '.join(map(str, request.choices))} bits on "
            f"{device.type}; run 'hetero-infer measure' on a {device.type} with [quality] choices as they are now"
        )

    def seconds(kind: LayerKind, choice: Choice | None) -> Mapping[Phase, float]:
        if choice is None:
            return dict.fromkeys(Phase, 0.0)
        of = request.latency.layer_seconds
        past_tokens = middle_past_tokens(workload)
        prefill_s = of(device, kind, choice, Phase.PREFILL, size[Phase.PREFILL], workload.prompt_tokens, 0)
        decode_s = of(device, kind, choice, Phase.DECODE, size[Phase.DECODE], 1, past_tokens)
        return {Phase.PREFILL: prefill_s, Phase.DECODE: decode_s + shared * prefill_s}

    def ends(embedding: Choice | None, head: Choice | None) -> Ends:
        embedding_s, head_s = seconds("embedding", embedding), seconds("head", head)
        return Ends(
            embedding,
            head,
            seconds={phase: embedding_s[phase] + head_s[phase] for phase in Phase},
            num_bytes=memory.end_layer_bytes(model, embedding, head, device.element_bytes),
            omega=sum(
                request.sensitivity.of_end(kind, choice)
                for kind, choice in zip(ENDS, (embedding, head), strict=True)
                if choice
            ),
        )

    stands = dict(zip(ENDS, (is_first, is_last), strict=True))
    of_ends = (
        request.latency.allowed_choices(device, request.end_choices(kind), kind) if stands[kind] else (None,)
        for kind in ENDS
    )
    layer_s = {choice: seconds("decoder", choice) for choice in choices}
    kv_bytes = memory.kv_cache_bytes(model, request.admitted, device.element_bytes)
    without_buffer, with_buffer = (
        memory.workspace_bytes(
            model,
            request.admitted,
            size[Phase.PREFILL],
            size[Phase.DECODE],
            device.element_bytes,
            is_first=is_first,
            is_last=is_last,
            dequantises=dequantises,
        )
        for dequantises in (False, True)
    )
    return StageTerms(
        device=device,
        layer_s={phase: {choice: layer_s[choice][phase] for choice in choices} for phase in Phase},
        layer_bytes={
            choice: memory.decoder_layer_bytes(model, choice, device.element_bytes) + kv_bytes for choice in choices
        },
        workspace_bytes=without_buffer,
        dequantise_bytes=with_buffer - without_buffer,
        ends=tuple(itertools.starmap(ends, itertools.product(*of_ends))),
    )

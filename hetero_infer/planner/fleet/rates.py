"""`Rates`: seconds and bytes of a decoder layer and of both ends, by kind of device, choice and micro-batch size.

Everything that the fleet planner asks the latency model, asked once. In: a `PlanRequest`. Out: arrays; a choice that a
device may not take costs infinity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hetero_infer.cost import memory
from hetero_infer.cost.comm import activation_message_bytes
from hetero_infer.cost.latency import LayerKind
from hetero_infer.planner.fleet.quality import Floats, lightest_mix
from hetero_infer.planner.problem import middle_past_tokens
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import UNQUANTISED, Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class Rates:
    """`kinds[k]` are devices alike in memory and speed, wherever they stand, in hostfile order.

    `layer_s[phase]` is [kind, choice, sequences], `embedding_s` and `head_s` [kind, sequences]; column 0 is infinity,
    for there is no micro-batch of 0. `weight_bytes` is [kind, choice], `sequence_bytes[kind]` the KV cache of one
    sequence in one layer.
    """

    request: PlanRequest
    kinds: tuple[tuple[Device, ...], ...]
    layer_s: Mapping[Phase, Floats]
    embedding_s: Mapping[Phase, Floats]
    head_s: Mapping[Phase, Floats]
    weight_bytes: Floats
    sequence_bytes: Floats
    omega: Floats

    @classmethod
    def of(cls, request: PlanRequest) -> "Rates":
        members: dict[Device, list[Device]] = {}
        for device in request.cluster.devices:
            members.setdefault(replace(device, slot=0, host=""), []).append(device)
        kinds = tuple(map(tuple, members.values()))
        examples = [devices[0] for devices in kinds]
        one = replace(request.workload, batch_size=1)

        def layer_bytes(device: Device, choice: Choice) -> float:
            return float(memory.decoder_layer_bytes(request.model, choice, device.element_bytes))

        return cls(
            request=request,
            kinds=kinds,
            layer_s={phase: _layer_s(request, examples, phase) for phase in Phase},
            embedding_s={phase: _end_s(request, examples, "embedding", phase) for phase in Phase},
            head_s={phase: _end_s(request, examples, "head", phase) for phase in Phase},
            weight_bytes=np.array([[layer_bytes(device, choice) for choice in request.choices] for device in examples]),
            sequence_bytes=np.array(
                [memory.kv_cache_bytes(request.model, one, device.element_bytes) for device in examples], dtype=float
            ),
            omega=np.array(
                [
                    [request.sensitivity.of(i, c) for c in request.choices]
                    for i in range(request.model.num_hidden_layers)
                ]
            ),
        )

    @cached_property
    def mix(self) -> Floats:
        """The share of layers at each choice where memory is short."""
        return lightest_mix(self.omega, self.request.omega_limit, self.weight_bytes[0])

    @property
    def counts(self) -> Floats:
        """Devices of each kind."""
        return np.array([len(devices) for devices in self.kinds], dtype=float)

    def room_bytes(
        self,
        kind: int,
        prefill_size: int,
        decode_size: int,
        *,
        is_first: bool = False,
        is_last: bool = False,
        dequantises: bool = False,
    ) -> int:
        """For decoder layers; ends, workspace and margin are taken off."""
        model, device = self.request.model, self.kinds[kind][0]
        embedding, head = (UNQUANTISED if stands else None for stands in (is_first, is_last))
        taken = memory.end_layer_bytes(model, embedding, head, device.element_bytes) + memory.workspace_bytes(
            model,
            self.request.workload,
            prefill_size,
            decode_size,
            device.element_bytes,
            is_first=is_first,
            is_last=is_last,
            dequantises=dequantises,
        )
        return memory.without_margin(device.memory_bytes) - taken

    def fastest_send_s(self, phase: Phase) -> float:
        """Of the smallest message, over the best link."""
        request, cluster = self.request, self.request.cluster
        tokens = request.workload.prompt_tokens if phase is Phase.PREFILL else 1
        num_bytes = min(
            activation_message_bytes(phase, 1, tokens, request.model.hidden_size, devices[0].element_bytes)
            for devices in self.kinds
        )
        return min(link.seconds(num_bytes) for link in (cluster.default_link, *cluster.links.values()))


def _layer_s(request: PlanRequest, examples: list[Device], phase: Phase) -> Floats:
    table = np.full((len(examples), len(request.choices), request.workload.batch_size + 1), np.inf)
    for kind, device in enumerate(examples):
        for choice in request.latency.allowed_choices(device, request.choices):
            column = request.choices.index(choice)
            for size in range(1, table.shape[2]):
                table[kind, column, size] = request.latency.layer_seconds(
                    device, "decoder", choice, phase, size, *_tokens(request, phase)
                )
    return table


def _end_s(request: PlanRequest, examples: list[Device], end: LayerKind, phase: Phase) -> Floats:
    table = np.full((len(examples), request.workload.batch_size + 1), np.inf)
    for kind, device in enumerate(examples):
        for size in range(1, table.shape[1]):
            table[kind, size] = request.latency.layer_seconds(
                device, end, UNQUANTISED, phase, size, *_tokens(request, phase)
            )
    return table


def _tokens(request: PlanRequest, phase: Phase) -> tuple[int, int]:
    """New and past ones of each sequence."""
    if phase is Phase.PREFILL:
        return request.workload.prompt_tokens, 0
    return 1, middle_past_tokens(request.workload)

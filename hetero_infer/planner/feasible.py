"""Whether a request has a plan at all, in milliseconds: the bits that lose least of those found to fit.

Any subset and order of the devices counts, in the smallest micro-batches, which need the least memory. What is found
is a plan, so "yes" is sure. With memory alone "no" is sure as well: at the lowest bits every device takes as many
layers as it holds. With a quality limit the layers are packed by a price on their bytes, and a device may keep room
for less than a layer that a better packing would use.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetero_infer.cost import memory
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.plan import Plan, QualityPlan, StagePlan
from hetero_infer.spec.sensitivity import ENDS

PRICES_TRIED = 14
Allowed = Callable[[Device], tuple[Choice, ...]]


def fitting_plans(request: PlanRequest, allowed: Allowed | None = None) -> Iterator[Plan]:
    """Plans that fit the memory, whatever the quality limit, each of the least Σω found for its ends.

    `allowed` are the choices of a device, by default those that the latency model has seconds for.
    """
    for packing in _packings(request, allowed):
        stages = packing.least_loss()
        if stages:
            yield _plan(request, stages, packing.ends)


def least_loss_plan(request: PlanRequest) -> Plan | None:
    """The plan of least Σω that is found to fit."""
    return min(fitting_plans(request), key=lambda plan: plan.quality.predicted if plan.quality else 0.0, default=None)


def held_layers(request: PlanRequest) -> tuple[int, ...]:
    """Decoder layers that each device holds at its lowest bits, in the order in which they hold most."""
    packings = _packings(request, None)
    return max((tuple(room.most(room.densest) for room in packing.rooms) for packing in packings), key=sum)


def _packings(request: PlanRequest, allowed: Allowed | None) -> "Iterator[_Packing]":
    """One for each order and each pair of choices of the ends that their devices have seconds for."""
    choices_of = allowed or (lambda device: request.latency.allowed_choices(device, request.choices))
    for order in _orders(request):
        of_ends = (
            request.latency.allowed_choices(device, request.end_choices(kind), kind)
            for device, kind in zip((order[0], order[-1]), ENDS, strict=True)
        )
        for ends in itertools.product(*of_ends):
            yield _Packing(request, order, choices_of, ends)


def _orders(request: PlanRequest) -> Iterator[list[Device]]:
    """One order for each pair of kinds of devices at the ends; between them the hostfile's order."""
    devices = request.cluster.devices
    kinds = list({_kind(device): device for device in reversed(devices)}.values())
    for first in kinds:
        yield [first]
        for kind in kinds:
            last = next((d for d in reversed(devices) if _kind(d) == _kind(kind) and d is not first), None)
            if last:
                yield [first, *(d for d in devices if d not in (first, last)), last]


def _kind(device: Device) -> tuple[str, int]:
    return device.timed_as, device.memory_bytes


@dataclass(frozen=True)
class _Room:
    """What a device has for decoder layers where it stands; a quantised layer needs the buffer to dequantise into."""

    choices: tuple[Choice, ...]
    layer_bytes: Mapping[Choice, int]
    room_bytes: int
    dequantise_bytes: int

    def buffer_bytes(self, choice: Choice) -> int:
        return self.dequantise_bytes if choice.is_quantised else 0

    def holds(self, layers: Sequence[Choice]) -> bool:
        return sum(map(self.layer_bytes.__getitem__, layers)) + max(map(self.buffer_bytes, layers)) <= self.room_bytes

    def most(self, choice: Choice) -> int:
        """Layers that fit at one choice."""
        return max(0, (self.room_bytes - self.buffer_bytes(choice)) // self.layer_bytes[choice])

    @cached_property
    def densest(self) -> Choice:
        return max(self.choices, key=self.most)


@dataclass(frozen=True)
class _Packing:
    """Layers one after the other onto devices in a fixed order; the last device takes what the others leave."""

    request: PlanRequest
    order: Sequence[Device]
    choices_of: Allowed
    ends: tuple[Choice, ...]

    @cached_property
    def omega(self) -> list[dict[Choice, float]]:
        table = self.request.sensitivity
        return [dict(zip(table.choices, row, strict=True)) for row in table.omega]

    @cached_property
    def rooms(self) -> list[_Room]:
        return [self._room(device, index) for index, device in enumerate(self.order)]

    def least_loss(self) -> list[tuple[Device, list[Choice]]] | None:
        """Bisects the price of a byte: a low one buys many bits, and the highest that packs is the first guess."""
        best = self._packed(None)
        if best is None or math.isinf(self.request.omega_limit):
            return best
        low, high = self._prices()
        for _ in range(PRICES_TRIED):
            price = (low * high) ** 0.5
            packed = self._packed(price)
            low, high, best = (low, price, packed) if packed else (price, high, best)
        return self._with_better_bits(best)

    def _packed(self, price: float | None) -> list[tuple[Device, list[Choice]]] | None:
        """None where the layers at the bits that `price` buys don't fit; None as the price: those that fit most."""
        stages: list[tuple[Device, list[Choice]]] = []
        layer, num_layers = 0, len(self.omega)
        for index, (device, room) in enumerate(zip(self.order, self.rooms, strict=True)):
            is_last = index == len(self.order) - 1
            layers: list[Choice] = []
            used_bytes, buffer_bytes = 0, 0
            while room.choices and layer < (num_layers if is_last else num_layers - 1):
                choice = room.densest if price is None else self._bought(room, layer, price)
                used_bytes += room.layer_bytes[choice]
                buffer_bytes = max(buffer_bytes, room.buffer_bytes(choice))
                if used_bytes + buffer_bytes > room.room_bytes:
                    break
                layers.append(choice)
                layer += 1
            if layers:
                stages.append((device, layers))
            elif index == 0 or is_last:
                return None
        return stages if layer == num_layers else None

    def _bought(self, room: _Room, layer: int, price: float) -> Choice:
        loss, size = self.omega[layer], room.layer_bytes
        return min(room.choices, key=lambda choice: loss[choice] + price * size[choice])

    def _with_better_bits(self, stages: list[tuple[Device, list[Choice]]]) -> list[tuple[Device, list[Choice]]]:
        """Room that is left buys bits for the layers that gain most by a byte."""
        better, first = [], 0
        for device, old in stages:
            room, omega = self.rooms[self.order.index(device)], self.omega[first : first + len(old)]
            gains = sorted(
                (
                    ((loss[choice] - loss[new]) / (room.layer_bytes[new] - room.layer_bytes[choice]), i, new)
                    for i, (loss, choice) in enumerate(zip(omega, old, strict=True))
                    for new in room.choices
                    if room.layer_bytes[new] > room.layer_bytes[choice] and loss[new] < loss[choice]
                ),
                reverse=True,
            )
            layers = list(old)
            for _, i, new in gains:
                if omega[i][new] < omega[i][layers[i]] and room.holds([*layers[:i], new, *layers[i + 1 :]]):
                    layers[i] = new
            better.append((device, layers))
            first += len(old)
        return better

    def _prices(self) -> tuple[float, float]:
        """Below the first every layer takes its best bits, above the second its lowest."""
        size = self.rooms[0].layer_bytes
        slopes = [
            (loss[low] - loss[high]) / (size[high] - size[low])
            for loss in self.omega
            for low, high in itertools.permutations(size, 2)
            if size[high] > size[low] and loss[low] > loss[high]
        ]
        return min(slopes, default=1.0) / 2, max(slopes, default=1.0) * 2

    def _room(self, device: Device, index: int) -> _Room:
        model, workload, element_bytes = self.request.model, self.request.workload, device.element_bytes
        embedding = self.ends[0] if index == 0 else None
        head = self.ends[1] if index == len(self.order) - 1 else None
        without_buffer, with_buffer = (
            memory.workspace_bytes(
                model,
                workload,
                prefill_size=1,
                decode_size=1,
                element_bytes=element_bytes,
                is_first=embedding is not None,
                is_last=head is not None,
                dequantises=dequantises,
            )
            for dequantises in (head is not None and head.is_quantised, True)
        )
        fixed_bytes = memory.end_layer_bytes(model, embedding, head, element_bytes) + without_buffer
        kv_bytes = memory.kv_cache_bytes(model, workload, element_bytes)
        choices = self.choices_of(device)
        return _Room(
            choices=choices,
            layer_bytes={c: memory.decoder_layer_bytes(model, c, element_bytes) + kv_bytes for c in choices},
            room_bytes=memory.without_margin(device.memory_bytes) - fixed_bytes,
            dequantise_bytes=with_buffer - without_buffer,
        )


def _plan(request: PlanRequest, stages: Sequence[tuple[Device, Sequence[Choice]]], ends: tuple[Choice, ...]) -> Plan:
    layers = [list(choices) for _, choices in stages]
    layers[0].insert(0, ends[0])
    layers[-1].append(ends[1])
    return Plan(
        model=request.model_facts,
        devices=request.cluster.devices,
        workload=request.workload,
        stages=tuple(
            StagePlan(device.name, tuple(choices)) for (device, _), choices in zip(stages, layers, strict=True)
        ),
        prefill_micro_batch_size=1,
        decode_micro_batch_size=1,
        quality=QualityPlan(
            max_perplexity_increase=request.max_perplexity_increase,
            limit=request.omega_limit,
            predicted=request.sensitivity.total(list(itertools.chain.from_iterable(layers))),
            unit=request.sensitivity.unit,
        ),
    )

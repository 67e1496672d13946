"""From a `PlanRequest` to the `Space` of each pair of micro-batch sizes, and back from a `Pipeline` to devices."""

import itertools
import math
from collections.abc import Collection, Mapping
from functools import cached_property

import numpy as np

from hetero_infer.planner.exact.arrays import Bools, Floats, Integers
from hetero_infer.planner.exact.device_classes import DeviceClass, best_link, device_classes, has_one_link
from hetero_infer.planner.exact.least_omega import MOST_ENTRIES, MOST_KEYS, LeastOmega, TooManyCounts
from hetero_infer.planner.exact.ring_paths import RingPaths, TooManyStates
from hetero_infer.planner.exact.space import Pipeline, Space, Wires
from hetero_infer.planner.exact.stage_options import CountTables, Position, StageOptions, fitting
from hetero_infer.planner.objective import ClosedForm, closed_form, shared_prefills
from hetero_infer.planner.problem import (
    QUALITY_TOLERANCE,
    StageTerms,
    omega_rows,
    return_seconds,
    send_seconds,
    stage_terms,
)
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.cluster import Device
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.workload import Phase

MEMORY_LEAVES_OUT = 4  # times: of all ways of counting layers, at least so many do not fit where most do
POSITIONS: Mapping[Position, tuple[bool, bool]] = {
    "first": (True, False),
    "middle": (False, False),
    "last": (False, True),
    "only": (True, True),
}


class SearchSpace:
    """All spaces of a request. What they share is made once.

    Where links differ, devices of different hosts are different classes. With so many classes that not all their
    orders can be looked at, hosts are not told apart and a class has its fastest link: bounds hold, and seconds are
    those of a real order only once `devices_of` has put one in place. A pipeline must use as many devices of each
    class as `must_use` names of it.
    """

    def __init__(self, request: PlanRequest, must_use: Collection[str] = ()) -> None:
        self.request = request
        self.most_mixed = len(request.choices)
        self._must_use = frozenset(must_use)
        self._seconds: dict[tuple[int, Phase, int, float], Floats] = {}
        for by_host in [False] if has_one_link(request.cluster) else [True, False]:
            try:
                self._set_classes(by_host=by_host)
                return
            except TooManyStates:
                continue
        raise InputError(
            f"{len(request.cluster.devices)} devices of {len(self.classes)} kinds are too many for one pipeline; set "
            '[planner] replicas = "auto", or leave devices out'
        )

    def _set_classes(self, *, by_host: bool) -> None:
        self.classes: tuple[DeviceClass, ...] = device_classes(self.request.cluster, by_host=by_host)
        num_layers = self.request.model.num_hidden_layers
        sends_alike, self._group_examples = self._groups_by_sending()
        self.paths = RingPaths([len(c.devices) for c in self.classes], num_layers, sends_alike)
        self.first_groups = self._groups_by_way_back()
        self.fewest = [sum(device.name in self._must_use for device in one.devices) for one in self.classes]

    def terms(self, prefill_size: int, decode_size: int) -> list[dict[Position, StageTerms]]:
        """Per class, by position."""
        size = {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size}
        return [
            {
                position: stage_terms(self.request, one.example, size, is_first=is_first, is_last=is_last)
                for position, (is_first, is_last) in POSITIONS.items()
            }
            for one in self.classes
        ]

    def objective(self, prefill_size: int, decode_size: int) -> ClosedForm:
        return closed_form(self.request, {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size})

    def space(self, prefill_size: int, decode_size: int) -> Space:
        """Of one pair of micro-batch sizes."""
        size = {Phase.PREFILL: prefill_size, Phase.DECODE: decode_size}
        terms = self.terms(prefill_size, decode_size)
        options = [
            StageOptions(
                tables,
                {phase: self._layers_s(c, phase, size, of_class["middle"]) for phase in Phase},
                of_class,
            )
            for c, (tables, of_class) in enumerate(zip(self._tables, terms, strict=True))
        ]
        scale = max(*(max(row.values()) for row in self._omega), *self._end_losses(terms)) or 1.0
        return Space(
            self.objective(prefill_size, decode_size),
            options,
            self.paths,
            Wires(
                {phase: self._send(phase, size) for phase in Phase},
                {phase: self._back(phase, size) for phase in Phase},
            ),
            self.first_groups,
            self.request.omega_limit,
            QUALITY_TOLERANCE * scale,
            self.fewest,
        )

    def devices_of(self, pipeline: Pipeline) -> tuple[Device, ...]:
        """In the order of the stages; each the one of its class that the stage before reaches fastest."""
        left = [list(one.devices) for one in self.classes]
        chosen: list[Device] = []
        for pick in pipeline.picks:
            of_class = left[pick.hop.device_class]
            device = min(of_class, key=lambda device: self._seconds_from(chosen[-1], device) if chosen else 0.0)
            of_class.remove(device)
            chosen.append(device)
        return tuple(chosen)

    def _seconds_from(self, source: Device, target: Device) -> float:
        """Of a prefill message of one sequence."""
        link = self.request.cluster.link(source, target)
        return send_seconds(self.request, link, source, dict.fromkeys(Phase, 1))[Phase.PREFILL]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.request.choices

    @property
    def is_restricted(self) -> bool:
        """Whether plans are left out that mix more than `most_mixed` choices in a stage: all mixes would not fit
        memory. Then only the fluid bounds hold for every plan."""
        return self.most_mixed < len(self.choices)

    @cached_property
    def _omega(self) -> tuple[Mapping[Choice, float], ...]:
        return omega_rows(self.request)

    @cached_property
    def _tables(self) -> list[CountTables]:
        """With the smallest workspace that any pair of sizes has."""
        smallest = min(self.request.workload.micro_batch_sizes)
        terms = self.terms(smallest, smallest)
        roomiest = [of_class[position] for of_class in terms for position in POSITIONS]

        def fits(rows: Integers) -> Bools:
            kept = np.zeros(len(rows), dtype=bool)
            for one in roomiest:
                kept |= fitting(rows, self.choices, one)
            return np.asarray(kept & ((rows > 0).sum(axis=1) <= self.most_mixed))

        if (len(self._omega) + 1) ** len(self.choices) >= MOST_KEYS:
            raise InputError(
                f"{len(self.choices)} choices for {len(self._omega)} layers are too many to plan with; take fewer "
                "[quality] choices"
            )
        longest = max((one.most_layers(choice) for one in roomiest for choice in one.choices if one.ends), default=0)
        while self.most_mixed > 1 and self._most_entries(longest) > MEMORY_LEAVES_OUT * MOST_ENTRIES:
            self.most_mixed -= 1
        omega = np.array([[row[choice] for choice in self.choices] for row in self._omega])
        while True:
            try:
                least = LeastOmega(omega, len(omega), fits)
            except TooManyCounts:
                self.most_mixed -= 1
            else:
                return [CountTables(least, self.choices, list(of_class.values()), len(omega)) for of_class in terms]

    def _most_entries(self, longest: int) -> int:
        """Of the tables of intervals up to `longest`, whatever fits memory."""
        num_layers, num_choices = len(self._omega), len(self.choices)
        return sum(
            (num_layers - length + 1) * math.comb(num_choices, mixed) * math.comb(length - 1, mixed - 1)
            for length in range(1, min(longest, num_layers) + 1)
            for mixed in range(1, min(self.most_mixed, length) + 1)
        )

    def _layers_s(self, c: int, phase: Phase, size: Mapping[Phase, int], terms: StageTerms) -> Floats:
        shared = shared_prefills(self.request, size) if phase is Phase.DECODE else 0.0
        key = c, phase, size[phase], shared
        if key not in self._seconds:
            self._seconds[key] = self._tables[c].seconds(terms.layer_s[phase])
        return self._seconds[key]

    def _end_losses(self, terms: list[dict[Position, StageTerms]]) -> list[float]:
        return [ends.omega for of_class in terms for one in of_class.values() for ends in one.ends]

    # Links.

    def _send(self, phase: Phase, size: Mapping[Phase, int]) -> Floats:
        request = self.request

        def seconds(source: DeviceClass, target: DeviceClass) -> float:
            return send_seconds(request, best_link(request.cluster, source, target), source.example, size)[phase]

        return np.array([[seconds(source, target) for target in self.classes] for source in self._group_examples])

    def _back(self, phase: Phase, size: Mapping[Phase, int]) -> Floats:
        request, firsts = self.request, [self.classes[group[0]] for group in self.first_groups]

        def seconds(last: DeviceClass, first: DeviceClass) -> float:
            return return_seconds(request, best_link(request.cluster, last, first), size)[phase]

        return np.array([[seconds(last, first) for last in self._group_examples] for first in firsts])

    def _groups_by_sending(self) -> tuple[list[int], list[DeviceClass]]:
        """Classes whose links to all classes, and elements, are the same."""
        keys = {
            one: (
                one.example.element_bytes,
                *(best_link(self.request.cluster, one, target) for target in self.classes),
            )
            for one in self.classes
        }
        distinct = list(dict.fromkeys(keys.values()))
        examples = [next(one for one in self.classes if keys[one] == key) for key in distinct]
        return [distinct.index(keys[one]) for one in self.classes], examples

    def _groups_by_way_back(self) -> list[list[int]]:
        def way_back(c: int) -> tuple[object, ...]:
            return tuple(best_link(self.request.cluster, last, self.classes[c]) for last in self.classes)

        by_way = sorted(range(len(self.classes)), key=lambda c: repr(way_back(c)))
        return [list(group) for _, group in itertools.groupby(by_way, key=lambda c: repr(way_back(c)))]

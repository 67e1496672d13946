"""PipeEdge (Hu et al., 2022): the partition whose slowest stage is fastest, over all orders and subsets of the devices.

Its dynamic programme goes over (layers placed, devices used, the last of them) and counts compute and send as
stations that overlap. It knows one bitwidth, one pass and one micro-batch size. Here it runs at every size and for
either phase, alike devices are interchangeable, the partition must fit memory at that size, and among partitions with
an equally slow slowest stage the one with least seconds in all is taken, which the paper leaves open.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetero_infer.planner.baselines.draft import Stages, best_sized, fastest, with_highest_ends
from hetero_infer.planner.baselines.uniform import highest_bits
from hetero_infer.planner.exact.device_classes import DeviceClass, best_link, device_classes, has_one_link
from hetero_infer.planner.no_plan import NoPlan
from hetero_infer.planner.problem import send_seconds, stage_terms
from hetero_infer.planner.request import PlanRequest
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.plan import Plan
from hetero_infer.spec.workload import Phase

Floats = NDArray[np.float64]
MOST_SETS = 20_000  # of devices that are not alike: some minutes
EQUAL = 1 + 1e-9  # stations that differ by less count as equally slow


def pipeedge(request: PlanRequest) -> Plan | NoPlan:
    """The highest bits at which some partition fits; of the partitions for each size and phase the fastest, by the
    recurrence with the best sizes."""
    request = with_highest_ends(request)
    classes = device_classes(request.cluster, by_host=not has_one_link(request.cluster))
    sizes = request.workload.micro_batch_sizes
    if math.prod(len(device_class.devices) + 1 for device_class in classes) > MOST_SETS:
        return NoPlan("has too many sets of devices to look at")

    def at(choice: Choice) -> Plan | NoPlan:
        paths = dict.fromkeys(
            Stations.of(request, classes, choice, phase, size).balanced_path()
            for phase, size in itertools.product(Phase, sizes)
        )
        found = [best_sized(request, _stages(classes, path, choice)) for path in paths if path]
        return fastest(found) if found else NoPlan("fits no order of the devices")

    return highest_bits(request, at)


Path = tuple[tuple[int, int], ...]  # per stage: its device class, its layers


@dataclass(frozen=True)
class Stations:
    """Seconds of every station a partition may have, for one micro-batch.

    `stage_s[is_first, is_last][c][k]` is a stage of k layers on a device of class c, infinite where they do not fit;
    `send_s[a][b]` goes from class a to class b; there are `multiplicity[c]` devices of class c.
    """

    multiplicity: tuple[int, ...]
    stage_s: dict[tuple[bool, bool], Floats]
    send_s: Floats

    @classmethod
    def of(
        cls, request: PlanRequest, classes: Sequence[DeviceClass], choice: Choice, phase: Phase, size: int
    ) -> "Stations":
        layers = np.arange(request.model.num_hidden_layers + 1)

        def stage_s(device_class: DeviceClass, is_first: bool, is_last: bool) -> Floats:
            stage = stage_terms(
                request, device_class.example, dict.fromkeys(Phase, size), is_first=is_first, is_last=is_last
            )
            if choice not in stage.choices or not stage.ends:
                return np.full(len(layers), np.inf)
            seconds = stage.ends[0].seconds[phase] + stage.layer_s[phase][choice] * layers
            return np.where((layers > 0) & (layers <= stage.most_layers(choice)), seconds, np.inf)

        def send_s(source: DeviceClass, target: DeviceClass) -> float:
            link = best_link(request.cluster, source, target)
            return send_seconds(request, link, source.example, dict.fromkeys(Phase, size))[phase]

        return cls(
            multiplicity=tuple(len(device_class.devices) for device_class in classes),
            stage_s={
                (is_first, is_last): np.array([stage_s(device_class, is_first, is_last) for device_class in classes])
                for is_first in (True, False)
                for is_last in (True, False)
            },
            send_s=np.array([[send_s(source, target) for target in classes] for source in classes]),
        )

    def balanced_path(self) -> Path:
        """Of the partitions with the least slowest station, the one with least seconds; empty where none fits."""
        slowest_s, _ = self._cheapest_path(np.maximum, np.inf)
        return self._cheapest_path(np.add, slowest_s * EQUAL)[1] if np.isfinite(slowest_s) else ()

    def _cheapest_path(self, together: np.ufunc, most_s: float) -> tuple[float, Path]:
        """The partition with the least maximum or sum of stations, none of which takes more than `most_s`.

        A state is (devices used of each class, class of the last one, layers placed).
        """
        num_classes, num_layers = len(self.multiplicity), self.stage_s[True, True].shape[1] - 1
        capped = {ends: np.where(seconds <= most_s, seconds, np.inf) for ends, seconds in self.stage_s.items()}
        send_s = np.where(self.send_s <= most_s, self.send_s, np.inf)
        hops = [_hops(capped[False, False][c], capped[False, True][c]) for c in range(num_classes)]
        best: dict[_State, Floats] = {}
        before: dict[_State, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for c in range(num_classes):
            best[_used(num_classes, c), c] = np.append(capped[True, False][c][:-1], capped[True, True][c][-1])
        for used in self._sets():
            for c in range(num_classes):
                if used[c] == 0 or sum(used) == 1:
                    continue
                smaller = _less(used, c)
                lasts = [last for last in range(num_classes) if smaller[last]]
                arrived = np.array([together(best[smaller, last], send_s[last, c]) for last in lasts])
                origin = arrived.argmin(axis=0)
                totals = together(arrived.min(axis=0)[:, None], hops[c])
                start = totals.argmin(axis=0)
                best[used, c] = totals.min(axis=0)
                before[used, c] = start, np.array(lasts)[origin[start]]
        state = min(best, key=lambda state: best[state][num_layers])
        total, stop, path = float(best[state][num_layers]), num_layers, []
        if not np.isfinite(total):
            return np.inf, ()
        while state in before:
            used, c = state
            starts, lasts_of = before[state]
            path.append((c, stop - int(starts[stop])))
            state, stop = (_less(used, c), int(lasts_of[stop])), int(starts[stop])
        return total, ((state[1], stop), *reversed(path))

    def _sets(self) -> Iterator[tuple[int, ...]]:
        """How many devices of each class are used, every set after its subsets."""
        sets = itertools.product(*(range(count + 1) for count in self.multiplicity))
        yield from sorted((used for used in sets if any(used)), key=sum)


_State = tuple[tuple[int, ...], int]


def _hops(middle: Floats, last: Floats) -> Floats:
    """[from, to]: seconds of a stage after the first, from layer to layer; the last one goes to the end."""
    num_layers = len(middle) - 1
    length = np.arange(num_layers + 1)[None, :] - np.arange(num_layers + 1)[:, None]
    hops = np.where(length > 0, middle[np.maximum(length, 0)], np.inf)
    hops[:, num_layers] = last[::-1]
    return hops


def _used(num_classes: int, c: int) -> tuple[int, ...]:
    return tuple(int(other == c) for other in range(num_classes))


def _less(used: tuple[int, ...], c: int) -> tuple[int, ...]:
    return (*used[:c], used[c] - 1, *used[c + 1 :])


def _stages(classes: Sequence[DeviceClass], path: Path, choice: Choice) -> Stages:
    free = [iter(device_class.devices) for device_class in classes]
    return [(next(free[c]), (choice,) * count) for c, count in path]

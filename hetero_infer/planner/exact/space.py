"""`Space`: all pipelines with one pair of micro-batch sizes (η, ξ), over all orders and subsets of the devices.

A `Node` is a part of it: the slowest prefill station and the slowest decode station lie between its floors and caps,
and the number of devices of each class is within a range.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hetero_infer.planner.exact.arrays import Floats
from hetero_infer.planner.exact.ring_paths import Hop, RingPaths
from hetero_infer.planner.exact.stage_options import StageOptions
from hetero_infer.planner.objective import ClosedForm
from hetero_infer.planner.problem import Ends
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.workload import Phase


@dataclass(frozen=True)
class Wires:
    """Seconds of the links: `send[phase][group, class]`, and `back[phase][first group, group]` to the first stage.

    Classes of one group cost the same to send from.
    """

    send: Mapping[Phase, Floats]
    back: Mapping[Phase, Floats]


Decided = tuple[tuple[Hop, tuple[int, ...], Choice | None, Choice | None], ...]


@dataclass(frozen=True)
class Pick:
    """A stage as chosen: its layers, how many at each choice, its ends, and what that comes to."""

    hop: Hop
    counts: tuple[int, ...]
    ends: Ends
    seconds: Mapping[Phase, float]
    omega: float


@dataclass(frozen=True)
class Pipeline:
    """A plan in the search's terms: passes (L) and slowest stations (M) of the two phases, Σω, the objective."""

    picks: tuple[Pick, ...]
    wires: Mapping[Phase, Sequence[float]]
    passes: Mapping[Phase, float]
    slowest: Mapping[Phase, float]
    omega: float
    seconds: float

    @property
    def decided(self) -> Decided:
        """What tells it from another."""
        return tuple((pick.hop, pick.counts, pick.ends.embedding, pick.ends.head) for pick in self.picks)

    def num_on(self, device_class: int) -> int:
        """Stages on a class."""
        return sum(pick.hop.device_class == device_class for pick in self.picks)


@dataclass(frozen=True)
class Node:
    """No plan between `floors` and `caps` that uses as many devices of each class as `uses` allows takes less than
    `bound_s`.

    `dual_s` is the relaxation's own bound, which charges the slowest stations at their floors; `omega_price` and
    `period_share` are the prices that gave it: of a unit of Σω, and the share of the rounds that is charged to the
    slowest station, the rest to the pass.
    """

    uses: tuple[range, ...]
    floors: Mapping[Phase, float]
    caps: Mapping[Phase, float]
    bound_s: float
    dual_s: float = 0.0
    omega_price: float = 0.0
    period_share: float = 1.0


@dataclass(frozen=True)
class Space:
    """All pipelines with one pair of micro-batch sizes. `first_groups` are the classes with the same way back to a
    first stage; `omega_tolerance` is what a sum may pass Ω by; of each class at least `fewest` devices are used."""

    objective: ClosedForm
    options: Sequence[StageOptions]
    paths: RingPaths
    wires: Wires
    first_groups: Sequence[Sequence[int]]
    omega_limit: float
    omega_tolerance: float
    fewest: Sequence[int]

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self.omega_limit)

    def root(self, bound_s: float) -> Node:
        """All of it."""
        uses = tuple(range(few, count + 1) for few, count in zip(self.fewest, self.paths.multiplicity, strict=True))
        return Node(uses, dict.fromkeys(Phase, 0.0), dict.fromkeys(Phase, math.inf), bound_s)

    def keeps_quality(self, omega: float) -> bool:
        return omega <= self.omega_limit + self.omega_tolerance

    def pipeline(self, picks: Sequence[Pick]) -> Pipeline:
        """What the stages come to together."""
        wires = {phase: list(self._wires(picks, phase)) for phase in Phase}
        passes = {phase: math.fsum([*(pick.seconds[phase] for pick in picks), *wires[phase]]) for phase in Phase}
        slowest = {phase: max([*(pick.seconds[phase] for pick in picks), *wires[phase]]) for phase in Phase}
        seconds = self.objective.of_totals(
            passes[Phase.PREFILL], slowest[Phase.PREFILL], passes[Phase.DECODE], slowest[Phase.DECODE]
        )
        return Pipeline(tuple(picks), wires, passes, slowest, math.fsum(pick.omega for pick in picks), seconds)

    def _wires(self, picks: Sequence[Pick], phase: Phase) -> Iterator[float]:
        alike = self.paths.sends_alike
        for pick, after in itertools.pairwise(picks):
            yield float(self.wires.send[phase][alike[pick.hop.device_class], after.hop.device_class])
        if len(picks) > 1:
            first, last = picks[0].hop.device_class, picks[-1].hop.device_class
            group = next(g for g, classes in enumerate(self.first_groups) if first in classes)
            yield float(self.wires.back[phase][group, alike[last]])

"""The fastest pipeline over all orders, subsets and micro-batch sizes, with a bound that holds for all of them.

Best first over the nodes of all pairs (η, ξ) at once: the node with the lowest bound is relaxed, and split where the
relaxation's plan passes its floors. A pair is not looked into before its fluid bound comes up.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field, replace

from hetero_infer.planner.exact.exhaust import exhaust
from hetero_infer.planner.exact.fluid import fluid_bound_s
from hetero_infer.planner.exact.improve import improve, lose_less
from hetero_infer.planner.exact.relaxation import Dual, Relaxation
from hetero_infer.planner.exact.search_space import SearchSpace
from hetero_infer.planner.exact.space import Decided, Node, Pipeline, Space
from hetero_infer.planner.problem import omega_rows
from hetero_infer.spec.workload import Phase

PREFILL, DECODE = Phase.PREFILL, Phase.DECODE
SPLITTING_SHARE = 0.25  # of what a bound lacks: where the floors explain less, splitting them helps no more
MOSTLY = 0.5
NEAR = 5e-3  # to the cutoff: few plans are left in such a node, and counting them is tried first
FEW_LABELS = 1_000
FIRST_LABELS = 20_000  # of an enumeration; where they do not suffice it is tried again with more
MORE_LABELS = 5  # times as many
MOST_NEAR = 50  # plans kept for the judge
MOST_WIDENED = 40  # pairs that are looked into for him alone
WIDENING_SHARE = 0.25  # of the search's time, at most
clock_s = time.monotonic
TIE = 1e-11  # a plan that is faster by less than this share is not looked for


@dataclass
class Effort:
    """What was looked at, and what was ruled out and why."""

    pairs: int = 0
    infeasible_pairs: int = 0
    opened_pairs: int = 0
    nodes: int = 0
    enumerated: int = 0
    unreached_pairs: int = 0
    widened_pairs: int = 0

    def __str__(self) -> str:
        ruled_out = self.pairs - self.infeasible_pairs - self.opened_pairs - self.unreached_pairs
        unreached = f", {self.unreached_pairs} not reached in the time" if self.unreached_pairs else ""
        return (
            f"{self.pairs} pairs of micro-batch sizes over all device orders and subsets: {self.infeasible_pairs} "
            f"cannot fit, {ruled_out} ruled out by their fluid bound, {self.opened_pairs} searched in {self.nodes} "
            f"parts, {self.enumerated} of these plan by plan, {self.widened_pairs} looked into for the judge "
            f"alone{unreached}"
        )


@dataclass
class Found:
    """The best pipeline and its pair; no pipeline of any pair is faster than `bound_s`. `near` are those met within
    the gap of the best at the time, by pair and stages; `best_of` is the best one met of each pair."""

    sizes: tuple[int, int] = (0, 0)
    pipeline: Pipeline | None = None
    near: dict[tuple[tuple[int, int], Decided], Pipeline] = field(default_factory=dict)
    best_of: dict[tuple[int, int], Pipeline] = field(default_factory=dict)
    bound_s: float = 0.0
    is_finished: bool = False
    seconds_spent: float = 0.0
    effort: Effort = field(default_factory=Effort)

    @property
    def seconds(self) -> float:
        return self.pipeline.seconds if self.pipeline else math.inf

    def within(self, gap: float) -> list[tuple[tuple[int, int], Pipeline]]:
        """With their pairs, those that are proven to the gap, the fastest first; the best one in any case."""
        assert self.pipeline
        near = [(sizes, one) for (sizes, _), one in self.near.items() if 1 - self.bound_s / one.seconds <= gap]
        first = (self.sizes, self.pipeline)
        rest = [one for one in near if one[1].decided != self.pipeline.decided or one[0] != self.sizes]
        return [first, *sorted(rest, key=lambda one: one[1].seconds)]

    def of_other_pairs(self, window: float) -> list[tuple[tuple[int, int], Pipeline]]:
        """The best ones of pairs but the best, as far as they take at most `window` longer, the fastest first."""
        others = [(sizes, one) for sizes, one in self.best_of.items() if sizes != self.sizes]
        near = [one for one in others if one[1].seconds <= self.seconds * (1 + window)]
        return sorted(near, key=lambda one: one[1].seconds)


@dataclass(frozen=True, order=True)
class _Open:
    """`node` is None until its pair of sizes is looked into. `most_labels`: of an enumeration, if it comes to that."""

    bound_s: float
    number: int
    sizes: tuple[int, int] = field(compare=False)
    node: Node | None = field(compare=False, default=None)
    most_labels: int = field(compare=False, default=FIRST_LABELS)


class BranchAndBound:
    """`window`: of each pair whose best plan may take so much longer than the best of all, relatively, one is looked
    for, so that the judge has it before him."""

    def __init__(self, search_space: SearchSpace, gap: float, window: float = 0.0) -> None:
        self._space = search_space
        self._window = window
        self._gap = max(gap * (1 - 1e-6), TIE)  # so that no rounding passes it
        self._spaces: dict[tuple[int, int], Space] = {}
        self._pools: dict[tuple[int, int], list[Pipeline]] = {}
        self._number = itertools.count()
        self._heap: list[_Open] = []
        self._fluid_s: dict[tuple[int, int], float] = {}
        self._least_closed_s = math.inf
        self.found = Found()

    def run(self, deadline_s: float) -> Found:
        """Until the gap is reached or the deadline, on the monotonic clock, has come."""
        found, started_s = self.found, clock_s()
        self._open_pairs(deadline_s)
        while self._heap and clock_s() < deadline_s:
            opened = heapq.heappop(self._heap)
            if opened.bound_s >= self._cut_s:
                self._close(opened.bound_s)
                continue
            self._expand(opened, deadline_s)
        self._lose_less()
        bounds = [self._least_closed_s, found.seconds, *(opened.bound_s for opened in self._heap)]
        found.bound_s = min(bounds)
        if self._space.is_restricted:
            found.bound_s = min(found.bound_s, *self._fluid_s.values())
        found.is_finished = not self._heap
        found.effort.unreached_pairs = sum(one.node is None and one.bound_s < self._cut_s for one in self._heap)
        if found.is_finished and found.pipeline and self._window:
            self._widen(min(deadline_s, clock_s() + WIDENING_SHARE * (clock_s() - started_s)))
        found.seconds_spent = clock_s() - started_s
        return found

    def _widen(self, deadline_s: float) -> None:
        """A good plan of each pair that the proof did not need but the judge may like."""
        most_s = self.found.seconds * (1 + self._window)
        near = sorted((bound_s, sizes) for sizes, bound_s in self._fluid_s.items() if bound_s <= most_s)
        for bound_s, sizes in near[:MOST_WIDENED]:
            if clock_s() >= deadline_s:
                break
            self.found.effort.widened_pairs += sizes not in self._spaces
            space = self._space_of(sizes)
            relaxation = Relaxation(space, space.root(bound_s), self._pools.setdefault(sizes, []))
            if relaxation.can_keep_quality():
                dual = relaxation.dual(most_s, tolerance_s=1e-4 * most_s)
                for _, path in dual.weights:
                    self._offer(sizes, improve(space, relaxation, path))

    def _lose_less(self) -> None:
        found = self.found
        if found.pipeline:
            space = self._spaces[found.sizes]
            found.pipeline = lose_less(space, Relaxation(space, space.root(0.0), []), found.pipeline)

    @property
    def _cut_s(self) -> float:
        return self.found.seconds * (1 - self._gap)

    def _close(self, bound_s: float) -> None:
        """Done with a node: nothing in it is faster than `bound_s`. Of what is slower than the cutoff caps leave plans
        out, so no more than the cutoff is claimed."""
        self._least_closed_s = min(self._least_closed_s, bound_s, self._cut_s)

    def _open_pairs(self, deadline_s: float) -> None:
        """A pair that time did not reach is bounded by 0."""
        search_space = self._space
        request = search_space.request
        sizes = request.workload.micro_batch_sizes
        multiplicity = [len(one.devices) for one in search_space.classes]
        omega = omega_rows(request)
        for pair in itertools.product(sizes, sizes):
            bound_s = 0.0
            if clock_s() < deadline_s:
                form, terms = search_space.objective(*pair), search_space.terms(*pair)
                bound_s = fluid_bound_s(form, terms, multiplicity, omega, request.omega_limit)
            self.found.effort.pairs += 1
            self._fluid_s[pair] = bound_s
            if math.isinf(bound_s):
                self.found.effort.infeasible_pairs += 1
            else:
                heapq.heappush(self._heap, _Open(bound_s, next(self._number), pair))

    def _expand(self, opened: _Open, deadline_s: float) -> None:
        sizes, effort = opened.sizes, self.found.effort
        effort.opened_pairs += sizes not in self._spaces
        effort.nodes += 1
        space, pool = self._space_of(sizes), self._pools.setdefault(sizes, [])
        node = _with_caps(space, opened.node or space.root(opened.bound_s), self._cut_s)
        relaxation = Relaxation(space, node, pool)
        if not relaxation.can_keep_quality():
            self._close(math.inf)
            return
        dual = relaxation.dual(self._cut_s, tolerance_s=1e-5 * opened.bound_s)
        for _, path in dual.weights:
            self._offer(sizes, improve(space, relaxation, path))
        bound_s = max(opened.bound_s, dual.bound_s)
        if bound_s >= self._cut_s:
            self._close(bound_s)
            return
        node = replace(
            node,
            bound_s=bound_s,
            dual_s=dual.bound_s,
            omega_price=dual.omega_price,
            period_share=dual.period_share,
        )
        children = _split(space, node, dual, self._cut_s)
        is_near = bound_s >= self._cut_s * (1 - NEAR)
        if is_near or not children:
            effort.enumerated += 1
            most = FEW_LABELS if children else opened.most_labels
            rest = exhaust(space, relaxation, dual, self._cut_s, most, lambda: clock_s() >= deadline_s)
            if rest.found:
                self._offer(sizes, rest.found)
            if rest.is_complete:
                self._close(math.inf)
                return
            if not children:
                more = MORE_LABELS * opened.most_labels
                heapq.heappush(self._heap, _Open(bound_s, next(self._number), sizes, node, more))
        for child in children:
            heapq.heappush(self._heap, _Open(child.bound_s, next(self._number), sizes, child))

    def _space_of(self, sizes: tuple[int, int]) -> Space:
        if sizes not in self._spaces:
            self._spaces[sizes] = self._space.space(*sizes)
        return self._spaces[sizes]

    def _offer(self, sizes: tuple[int, int], pipeline: Pipeline) -> None:
        found = self.found
        if not self._spaces[sizes].keeps_quality(pipeline.omega):
            return
        if pipeline.seconds * (1 - self._gap) <= found.seconds:
            found.near[sizes, pipeline.decided] = pipeline
            if len(found.near) > 2 * MOST_NEAR:
                found.near = dict(sorted(found.near.items(), key=lambda item: item[1].seconds)[:MOST_NEAR])
        if sizes not in found.best_of or pipeline.seconds < found.best_of[sizes].seconds:
            found.best_of[sizes] = pipeline
        if pipeline.seconds < found.seconds:
            found.sizes, found.pipeline = sizes, pipeline


def _slopes(space: Space, period_share: float) -> dict[Phase, float]:
    """Seconds of the bound per second of the slowest station."""
    form = space.objective
    return {
        PREFILL: form.slowest[PREFILL],
        DECODE: form.slowest[DECODE] + period_share * form.rounds * form.micro_batches[DECODE],
    }


def _with_caps(space: Space, node: Node, cut_s: float) -> Node:
    """With caps beyond which a plan is slower than the cutoff."""
    if math.isinf(cut_s):
        return node
    caps = {}
    for phase, slope in _slopes(space, node.period_share).items():
        most = node.floors[phase] + (cut_s - node.dual_s) / slope if slope > 0 else math.inf
        caps[phase] = min(node.caps[phase], most * (1 + 1e-12))
    return replace(node, caps=caps)


def _split(space: Space, node: Node, dual: Dual, cut_s: float) -> list[Node]:
    """Where the bound undercharges its own plans most. Empty where no split explains what the bound lacks."""
    missing_s = cut_s - node.dual_s if math.isfinite(cut_s) else 1e-3 * node.dual_s
    excess = {phase: _excess(space, node, dual, phase) for phase in Phase}
    phase = max(excess, key=excess.__getitem__)
    explains = excess[phase] > SPLITTING_SHARE * missing_s
    if excess[phase] > MOSTLY * missing_s and (halves := _split_at(space, node, dual, phase)):
        return halves
    return _split_uses(node, dual) or (_split_at(space, node, dual, phase) if explains else [])


def _excess(space: Space, node: Node, dual: Dual, phase: Phase) -> float:
    """Seconds by which the bound's plans take longer than it charges them, at the slowest station of a phase."""
    return sum(weight * _undercharged(space, node, dual, phase, path) for weight, path in dual.weights)


def _undercharged(space: Space, node: Node, dual: Dual, phase: Phase, path: Pipeline) -> float:
    form = space.objective
    above_s = path.slowest[phase] - node.floors[phase]
    seconds = form.slowest[phase] * above_s
    if phase is DECODE:
        share, md = dual.period_share, form.micro_batches[DECODE]
        charged_s = share * md * node.floors[DECODE] + (1 - share) * path.passes[DECODE]
        seconds += form.rounds * (max(md * path.slowest[DECODE], path.passes[DECODE]) - charged_s)
    return seconds


def _split_at(space: Space, node: Node, dual: Dual, phase: Phase) -> list[Node]:
    """Half way between what the slowest station is charged and what it takes, of the plan most undercharged."""
    form = space.objective
    _, path = max(dual.weights, key=lambda one: one[0] * _undercharged(space, node, dual, phase, one[1]))
    charged_s, taken_s = node.floors[phase], path.slowest[phase]
    if phase is DECODE and form.rounds and form.micro_batches[DECODE] * taken_s > path.passes[DECODE]:
        charged_s = max(charged_s, path.passes[DECODE] / form.micro_batches[DECODE])  # a shorter period is a pass
    if taken_s - charged_s < 1e-9 * taken_s:
        return []
    middle_s = (charged_s + taken_s) / 2
    dual_s = node.dual_s + _slopes(space, node.period_share)[phase] * (middle_s - node.floors[phase])
    higher = replace(node, floors={**node.floors, phase: middle_s}, dual_s=dual_s, bound_s=max(node.bound_s, dual_s))
    return [replace(node, caps={**node.caps, phase: middle_s}), higher]


def _split_uses(node: Node, dual: Dual) -> list[Node]:
    """Where the bound mixes plans that use different numbers of a class of devices."""
    for c, use in enumerate(node.uses):
        counts = {path.num_on(c) for _, path in dual.weights}
        if len(counts) > 1:
            middle = min(counts) + 1
            halves = (range(use.start, middle), range(middle, use.stop))
            return [replace(node, uses=(*node.uses[:c], half, *node.uses[c + 1 :])) for half in halves]
    return []

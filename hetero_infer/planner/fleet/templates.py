"""Which replicas to build: templates (devices of each kind), how many of each, and the sequences of each.

In: templates with a guess of their seconds, corrected by the pipelines that were found. Out: the copies of each that
serve most sequences within a time, by a mixed-integer programme (Pyomo, HiGHS) over the counts of devices: identical
devices are one count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.solver.solvers.highs import Highs

from hetero_infer.planner.fleet.pipelines import Pipeline
from hetero_infer.planner.fleet.quality import Floats
from hetero_infer.planner.fleet.rates import Rates
from hetero_infer.spec.workload import Phase

MIP_GAP = 2e-3
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)  # of decode
EVENING_OUT = 3  # passes that give what is beyond a device's memory to the others
ROUND_UP = 1 + 1e-9  # before a share is rounded down


@dataclass
class Template:
    """`devices[kind]` of each kind; `guess_s` at `shares`, to be multiplied by `correction` until one is `found`.

    `found` is by share, None where no pipeline was found.
    """

    devices: tuple[int, ...]
    shares: Floats
    guess_s: Floats
    correction: float | None = None
    found: dict[int, Pipeline | None] = field(default_factory=dict)

    def share_within(self, limit_s: float, correction: float) -> int:
        """The most sequences within `limit_s`. `correction` is of guesses that have none of their own."""
        ratios = self.ratios
        factor = (
            np.interp(self.shares, list(ratios), list(ratios.values())) if ratios else self.correction or correction
        )
        share = np.interp(limit_s, np.maximum.accumulate(self.guess_s * factor), self.shares, left=0)
        too_many = min((share for share, pipeline in self.found.items() if not pipeline), default=np.inf)
        return int(min(share, too_many - 1) * ROUND_UP)

    @property
    def ratios(self) -> dict[int, float]:
        """By share, in order: the seconds found to those guessed."""
        return {
            share: pipeline.seconds / float(np.interp(share, self.shares, self.guess_s))
            for share, pipeline in sorted(self.found.items())
            if pipeline
        }


def guess_seconds(rates: Rates, devices: tuple[int, ...], shares: Floats) -> Floats:
    """Of a perfectly balanced pipeline at a typical mix of choices, for each of `shares`; infinity where the model is
    too large."""
    num_layers, mix = len(rates.omega), rates.mix
    used = np.flatnonzero(devices)
    count = np.array(devices, dtype=float)[used]
    room = np.array([rates.room_bytes(int(kind), 1, 1) for kind in used])
    weight_bytes = rates.weight_bytes[used] @ mix
    prefill_s, decode_s = (
        np.einsum("kcs,c->ks", np.where(mix[:, None] > 0, rates.layer_s[phase][used], 0.0), mix) for phase in Phase
    )
    seconds = np.full(len(shares), np.inf)
    for row, share in enumerate(shares):
        most = np.maximum(0, room // (weight_bytes + share * rates.sequence_bytes[used]))
        if most @ count < num_layers:
            continue
        layers = np.minimum(num_layers / prefill_s[:, 1] / (count @ (1 / prefill_s[:, 1])), most)
        for _ in range(EVENING_OUT):
            layers = np.minimum(layers * num_layers / (layers @ count), most)
        slowest = (layers * prefill_s[:, 1]).max()
        prefill = (share - 1) * slowest + count @ (layers * prefill_s[:, 1])
        rounds = []
        for micro_batches in MICRO_BATCHES:
            stage_s = layers * decode_s[:, -(-int(share) // micro_batches)]
            rounds.append(max(micro_batches * stage_s.max(), count @ stage_s))
        seconds[row] = prefill + (rates.request.workload.new_tokens - 1) * min(rounds)
    return seconds


def most_sequences(
    templates: Sequence[Template], counts: Sequence[float], limit_s: float, replicas: int | None, correction: float
) -> list[tuple[Template, int]]:
    """The replicas that together serve most sequences within `limit_s`, and the share of each."""
    shares = {t: share for t, template in enumerate(templates) if (share := template.share_within(limit_s, correction))}
    if not shares:
        return []
    m = pyo.ConcreteModel()
    m.templates = pyo.Set(initialize=list(shares))
    m.kinds = pyo.RangeSet(0, len(counts) - 1)
    m.copies = pyo.Var(m.templates, domain=pyo.NonNegativeIntegers)

    @m.Constraint(m.kinds, doc="no device stands in two replicas")  # type: ignore[untyped-decorator]
    def devices(m: Any, kind: int) -> Any:
        return pyo.quicksum(templates[t].devices[kind] * m.copies[t] for t in m.templates) <= counts[kind]

    if replicas is not None:
        m.replicas = pyo.Constraint(expr=pyo.quicksum(m.copies.values()) == replicas)
    m.sequences = pyo.Objective(expr=pyo.quicksum(shares[t] * m.copies[t] for t in m.templates), sense=pyo.maximize)
    results = Highs().solve(
        m, rel_gap=MIP_GAP, threads=1, time_limit=5, raise_exception_on_nonoptimal_result=False, load_solutions=False
    )
    if results.incumbent_objective is None:
        return []
    results.solution_loader.load_vars()
    return [(templates[t], shares[t]) for t in m.templates for _ in range(round(m.copies[t].value))]

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
from hetero_infer.planner.fleet.rates import Floats, Rates
from hetero_infer.spec.workload import Phase

MIP_GAP = 2e-3


@dataclass
class Template:
    """`devices[kind]` of each kind; `guess_s` at `shares`; `found` by share, None where no pipeline was found."""

    devices: tuple[int, ...]
    shares: Floats
    guess_s: Floats
    found: dict[int, Pipeline | None] = field(default_factory=dict)

    def share_within(self, limit_s: float, correction: float) -> int:
        """The most sequences within `limit_s`. `correction` is of the guess, where nothing is found yet."""
        guess_s = self.guess_s
        real = {share: pipeline.seconds for share, pipeline in self.found.items() if pipeline}
        if real:
            at = sorted(real)
            ratios = [real[share] / np.interp(share, self.shares, guess_s) for share in at]
            guess_s = guess_s * np.interp(self.shares, at, ratios)
        else:
            guess_s = guess_s * correction
        guess_s = np.maximum.accumulate(guess_s)
        too_many = min((share for share, pipeline in self.found.items() if not pipeline), default=np.inf)
        share = np.interp(limit_s, guess_s, self.shares, left=0)
        return int(min(share, too_many - 1) + 1e-6)


def guess_seconds(rates: Rates, devices: tuple[int, ...], shares: Floats) -> Floats:
    """Of a perfectly balanced pipeline at one typical choice, for each of `shares`; infinity where it holds no model."""
    request, num_layers = rates.request, len(rates.omega)
    used = np.flatnonzero(devices)
    count = np.array(devices, dtype=float)[used]
    lost = rates.omega.sum(axis=0)
    order = np.argsort(rates.weight_bytes[0])
    typical = next((int(c) for c in order if lost[c] <= request.omega_limit), int(order[-1]))
    room = np.array([rates.room_bytes(int(k), 1, 1, is_first=False, is_last=False) - rates.dequantise_bytes(int(k)) for k in used])
    prefill_s, decode_s = (rates.layer_s[phase][used, typical] for phase in Phase)
    seconds = np.full(len(shares), np.inf)
    for row, share in enumerate(shares):
        most = room // (rates.weight_bytes[used, typical] + share * rates.sequence_bytes[used])
        if most.clip(0) @ count < num_layers + 2:
            continue
        weight = 1 / prefill_s[:, 1]
        layers = np.minimum(num_layers * weight / (weight @ count), most)
        for _ in range(3):
            layers = np.minimum(layers * num_layers / (layers @ count), most)
        slowest = (layers * prefill_s[:, 1]).max()
        prefill = (share - 1) * slowest + count @ (layers * prefill_s[:, 1])
        rounds = []
        for micro_batches in {1, 2, 4, 8, 16, 32}:
            stage_s = layers * decode_s[:, -(-int(share) // micro_batches)]
            rounds.append(max(micro_batches * stage_s.max(), count @ stage_s))
        seconds[row] = prefill + (request.workload.new_tokens - 1) * min(rounds)
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

"""The count formulation in Pyomo: which layers stand where, at which bits, for the closed form's least seconds.

In: a `PlanningProblem`. Out: a `ConcreteModel`. Symbols as in docs/planner.md: layers i, stages j, choices b.
The branching falls on the counts n[j, b] and the steps s[i, j], not on L·N·B look-alike layers: decoder layers of a
stage differ only in ω, so with s and n fixed the assignment z is a transportation polytope with integer margins, and
z may stay continuous.
"""

# mypy: disallow-untyped-decorators=False

import math
from typing import Any

import pyomo.environ as pyo

from hetero_infer.planner.problem import PlanningProblem
from hetero_infer.spec.workload import Phase


def count_formulation(problem: PlanningProblem, scale_s: float) -> pyo.ConcreteModel:
    """Minimise `total`, in units of `scale_s`.

    Each of the three waits is its own share of the total, so the solver's tolerance is relative to the total.
    """
    prefill, decode = Phase.PREFILL, Phase.DECODE
    form = problem.objective
    md = form.micro_batches[decode]

    m = pyo.ConcreteModel()
    m.layers = pyo.RangeSet(0, problem.num_layers - 1)
    m.stages = pyo.RangeSet(0, len(problem.stages) - 1)
    m.choices = pyo.Set(
        initialize=[(j, b) for j, stage in enumerate(problem.stages) for b in range(len(stage.choices))],
        doc="(j, b): the b-th of the choices that the device of stage j may take",
    )
    m.s = pyo.Var(m.layers, m.stages, domain=pyo.Binary, doc="layer i stands on stage j or later")
    m.z = pyo.Var(m.layers, m.choices, bounds=(0, 1), doc="layer i stands on stage j at choice b")
    m.n = pyo.Var(
        m.choices, domain=pyo.NonNegativeIntegers, bounds=(0, problem.num_layers), doc="layers of stage j at choice b"
    )
    m.q = pyo.Var(m.stages, domain=pyo.Binary, doc="stage j has something quantised, and so a buffer for it")
    m.ends = pyo.Set(
        initialize=[(j, e) for j, stage in enumerate(problem.stages) for e in range(len(stage.ends))],
        doc="(j, e): the e-th way to store embedding and head of stage j",
    )
    m.e = pyo.Var(m.ends, domain=pyo.Binary, doc="stage j has its e-th ends")
    m.prefill_wait = pyo.Var(domain=pyo.NonNegativeReals, doc="b · M_p, of a ring (mp - 1) · M_p")
    m.decode_rounds = pyo.Var(domain=pyo.NonNegativeReals, doc="R · max(md · M_d, L_d), of a ring R = n - 2")
    m.decode_wait = pyo.Var(domain=pyo.NonNegativeReals, doc="d · M_d, of a ring (md - 1) · M_d")

    def on_stage(j: int) -> Any:
        return range(len(problem.stages[j].choices))

    def ends_of(j: int) -> Any:
        return range(len(problem.stages[j].ends))

    # Placement: contiguous layers, every stage used.

    @m.Constraint(m.layers, doc="every layer stands on stage 0 or later")
    def first_stage(m: Any, i: int) -> Any:
        return m.s[i, 0] == 1

    @m.Constraint(m.stages, doc="the last layer stands on the last stage")
    def last_stage(m: Any, j: int) -> Any:
        return m.s[problem.num_layers - 1, j] == 1

    @m.Constraint(m.stages, doc="the first layer stands on the first stage")
    def first_layer(m: Any, j: int) -> Any:
        return m.s[0, j] == (1 if j == 0 else 0)

    @m.Constraint(m.layers, m.stages, doc="a layer never stands before its predecessor")
    def in_order(m: Any, i: int, j: int) -> Any:
        return m.s[i, j] <= m.s[i + 1, j] if i + 1 in m.layers else pyo.Constraint.Skip

    @m.Constraint(m.layers, m.stages, doc="nor more than one stage behind it: no stage is empty")
    def no_gap(m: Any, i: int, j: int) -> Any:
        inside = i + 1 in m.layers and j + 1 in m.stages
        return m.s[i + 1, j + 1] <= m.s[i, j] if inside else pyo.Constraint.Skip

    @m.Constraint(m.layers, m.stages, doc="a layer has one choice, on its stage")
    def one_choice(m: Any, i: int, j: int) -> Any:
        behind = m.s[i, j + 1] if j + 1 in m.stages else 0
        return sum(m.z[i, j, b] for b in on_stage(j)) == m.s[i, j] - behind

    @m.Constraint(m.choices, doc="counts")
    def counts(m: Any, j: int, b: int) -> Any:
        return m.n[j, b] == sum(m.z[i, j, b] for i in m.layers)

    @m.Constraint(m.stages, doc="embedding and head are stored in one way")
    def one_way(m: Any, j: int) -> Any:
        return sum(m.e[j, e] for e in ends_of(j)) == 1

    # Memory and quality.

    @m.Constraint(m.ends, doc="a stage with a quantised head dequantises")
    def dequantising_ends(m: Any, j: int, e: int) -> Any:
        return m.e[j, e] <= m.q[j] if problem.stages[j].ends[e].dequantises else pyo.Constraint.Skip

    @m.Constraint(m.choices, doc="a stage with a quantised layer dequantises")
    def dequantising(m: Any, j: int, b: int) -> Any:
        choice = problem.stages[j].choices[b]
        most = min(problem.num_layers, problem.stages[j].most_layers(choice))
        return m.n[j, b] <= most * m.q[j] if choice.is_quantised else pyo.Constraint.Skip

    @m.Constraint(m.stages, doc="weights, KV caches and the buffer fit; in whole units: rounding cannot overfill")
    def memory(m: Any, j: int) -> Any:
        stage = problem.stages[j]
        unit = math.gcd(*stage.layer_bytes.values(), stage.dequantise_bytes, *(ends.num_bytes for ends in stage.ends))
        room = stage.room_bytes // unit
        layers = (stage.layer_bytes[choice] // unit * m.n[j, b] for b, choice in enumerate(stage.choices))
        ends = (stage.ends[e].num_bytes // unit * m.e[j, e] for e in ends_of(j))
        return (sum(layers) + sum(ends) + stage.dequantise_bytes // unit * m.q[j]) / room <= 1 + 0.5 / room

    m.quality_loss = pyo.Expression(
        expr=sum(
            problem.omega[i][problem.stages[j].choices[b]] / problem.omega_scale * m.z[i, j, b]
            for i in m.layers
            for j, b in m.choices
        )
        + sum(problem.stages[j].ends[e].omega / problem.omega_scale * m.e[j, e] for j, e in m.ends),
        doc="Σ ω over the largest ω",
    )
    if math.isfinite(problem.omega_limit):
        m.quality = pyo.Constraint(expr=m.quality_loss <= problem.omega_limit / problem.omega_scale, doc="Σ ω ≤ Ω")

    # Time: the closed form of cost/timeline.py.

    def compute(phase: Phase, j: int) -> Any:
        stage = problem.stages[j]
        layers = (stage.layer_s[phase][choice] * m.n[j, b] for b, choice in enumerate(stage.choices))
        ends = (stage.ends[e].seconds[phase] * m.e[j, e] for e in ends_of(j))
        return (sum(ends) + sum(layers)) / scale_s

    def wires(phase: Phase) -> list[float]:
        return [seconds / scale_s for seconds in (*problem.send_s[phase], problem.return_s[phase])]

    def once_round(phase: Phase) -> Any:
        return sum(compute(phase, j) for j in m.stages) + sum(wires(phase))

    @m.Constraint(m.stages, doc="prefill: the other micro-batches follow through the slowest station")
    def prefill_stage(m: Any, j: int) -> Any:
        return m.prefill_wait >= form.slowest[prefill] * compute(prefill, j)

    @m.Constraint(m.stages, doc="decode: a round takes as long as the busiest stage works in it")
    def round_stage(m: Any, j: int) -> Any:
        return m.decode_rounds >= form.rounds * md * compute(decode, j)

    @m.Constraint(doc="decode: a round takes as long as a token needs to come back")
    def round_token(m: Any) -> Any:
        return m.decode_rounds >= form.rounds * once_round(decode)

    @m.Constraint(m.stages, doc="decode: the last round drains through the slowest station")
    def drain_stage(m: Any, j: int) -> Any:
        return m.decode_wait >= form.slowest[decode] * compute(decode, j)

    m.prefill_wait.setlb(form.slowest[prefill] * max(wires(prefill)))
    m.decode_rounds.setlb(form.rounds * md * max(wires(decode)))
    m.decode_wait.setlb(form.slowest[decode] * max(wires(decode)))

    m.total = pyo.Expression(
        expr=sum(form.passes[phase] * once_round(phase) for phase in Phase)
        + m.prefill_wait
        + m.decode_rounds
        + m.decode_wait
    )
    m.least_seconds = pyo.Objective(expr=m.total)
    return m

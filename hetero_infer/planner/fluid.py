"""A lower bound on the seconds of one `PlanningProblem`: layers as a fluid that any stage may take any part of.

The linear programme drops contiguity, order and whole layers, and keeps memory, quality and the closed form. It costs
milliseconds, so the search orders the pairs (η, ξ) by it and never builds the MILP of those it rules out.
"""

import math

import numpy as np
from scipy.optimize import linprog

from hetero_infer.planner.problem import PlanningProblem, StageTerms
from hetero_infer.spec.choice import Choice
from hetero_infer.spec.workload import Phase

SAFETY = 1e-9  # covers the simplex's own rounding
OPTIMAL, INFEASIBLE = 0, 2  # of linprog


def fluid_bound_s(problem: PlanningProblem) -> float:
    """No plan of `problem` takes fewer seconds; infinity where not even the fluid fits.

    Columns: layers of stage j at choice b (n), shares of layer i at choice b on whatever stage (z), and the three
    waits of the closed form. Seconds are in units of a typical total, bytes in units of the room.
    """
    stages, num_layers, scale_s = problem.stages, problem.num_layers, problem.typical_s
    if not all(stage.holds_a_layer for stage in stages):
        return math.inf
    choices = tuple(problem.omega[0])
    layers = [(j, choice) for j, stage in enumerate(stages) for choice in stage.choices]
    shares = [(i, choice) for i in range(num_layers) for choice in choices]
    num_columns = len(layers) + len(shares) + 3
    prefill_wait, decode_rounds, decode_wait = np.eye(num_columns)[-3:]

    num_on = np.zeros((len(stages), num_columns))
    used = np.zeros((len(stages), num_columns))
    compute = {phase: np.zeros((len(stages), num_columns)) for phase in Phase}
    for column, (j, choice) in enumerate(layers):
        num_on[j, column] = 1
        used[j, column] = _bytes_per_layer(stages[j], choice, num_layers) / stages[j].room_bytes
        for phase in Phase:
            compute[phase][j, column] = stages[j].layer_s[phase][choice] / scale_s
    fixed = {phase: np.array([stage.fixed_s[phase] for stage in stages]) / scale_s for phase in Phase}
    wires = {phase: np.array([*problem.send_s[phase], problem.return_s[phase]]) / scale_s for phase in Phase}
    once_round = {phase: compute[phase].sum(axis=0) for phase in Phase}
    once_round_fixed = {phase: fixed[phase].sum() + wires[phase].sum() for phase in Phase}

    rows = [*used, *-num_on]
    limits = [1.0] * len(stages) + [-1.0] * len(stages)

    def at_most(row: np.ndarray, limit: float) -> None:
        rows.append(row)
        limits.append(limit)

    def at_least_every_station(wait: np.ndarray, times: int, phase: Phase) -> None:
        for stage_s, fixed_s in zip(compute[phase], fixed[phase], strict=True):
            at_most(times * stage_s - wait, -times * fixed_s)
        at_most(-wait, -times * wires[phase].max())

    if math.isfinite(problem.omega_limit):
        quality = np.zeros(num_columns)
        quality[len(layers) : -3] = [problem.omega[i][choice] / problem.omega_scale for i, choice in shares]
        at_most(quality, problem.omega_limit / problem.omega_scale)
    mp, md = problem.micro_batches[Phase.PREFILL], problem.micro_batches[Phase.DECODE]
    at_least_every_station(prefill_wait, mp - 1, Phase.PREFILL)
    at_least_every_station(decode_rounds, problem.full_rounds * md, Phase.DECODE)
    at_least_every_station(decode_wait, problem.last_rounds * (md - 1), Phase.DECODE)
    at_most(
        problem.full_rounds * once_round[Phase.DECODE] - decode_rounds,
        -problem.full_rounds * once_round_fixed[Phase.DECODE],
    )

    equal = np.zeros((num_layers + len(choices), num_columns))
    for column, (_, choice) in enumerate(layers):
        equal[num_layers + choices.index(choice), column] = 1
    for column, (i, choice) in enumerate(shares, len(layers)):
        equal[num_layers + choices.index(choice), column] = -1
        equal[i, column] = 1

    passes = {Phase.PREFILL: 1, Phase.DECODE: problem.last_rounds}
    result = linprog(
        sum(passes[phase] * once_round[phase] for phase in Phase) + prefill_wait + decode_rounds + decode_wait,
        np.array(rows),
        np.array(limits),
        equal,
        np.array([1.0] * num_layers + [0.0] * len(choices)),
        method="highs",
    )
    if result.status == INFEASIBLE:
        return math.inf
    if result.status != OPTIMAL:
        return 0.0
    fixed_total = sum(passes[phase] * once_round_fixed[phase] for phase in Phase)
    return float(result.fun + fixed_total) * scale_s * (1 - SAFETY)


def _bytes_per_layer(stage: StageTerms, choice: Choice, num_layers: int) -> float:
    """With the layer's part of the buffer to dequantise into, shared by as many quantised layers as fit."""
    quantised = [other for other in stage.choices if other.is_quantised]
    most = min(num_layers, max((stage.most_layers(other) for other in quantised), default=0))
    return stage.layer_bytes[choice] + (stage.buffer_bytes(choice) / most if most else 0)

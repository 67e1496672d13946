"""What people are shown of a plan: tables of text, as wide as a terminal, that a log can hold too."""

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hetero_infer.cost.latency import SPEC_SHEET, LatencyModel
from hetero_infer.spec import Choice, Cluster, Device, Fleet, Link, Phase, Plan
from hetero_infer.spec.evaluation import Perplexity
from hetero_infer.spec.plan import QualityPlan, SolverReport, num_micro_batches

if TYPE_CHECKING:
    from hetero_infer.measure.agreement import Agreement
    from hetero_infer.planner.answers.explain import Explanation
    from hetero_infer.planner.answers.pareto import Front
    from hetero_infer.planner.answers.what_if import WhatIf
    from hetero_infer.planner.compare import Compared
    from hetero_infer.planner.no_plan import NoPlan

MIB, GIB = 2**20, 2**30
WIDTH = 114  # columns; a table of long names takes up to 120
DEVICE_WIDTH, BITS_WIDTH = 27, 21
NARROWEST_BAR, WIDEST_BAR = 8, 24
LABEL_WIDTH = 12
COLUMN_WIDTH, PARETO_WIDTH = 46, 60
PLAN_ROWS = ("devices", "layers", "prefill in", "decode in", "prefill", "decode", "tokens/s", "quality loss", "gap")
BAR = {"weights": "█", "kv_cache": "▓", "workspace": "▒", "free": "░"}
IN_ASCII = str.maketrans(
    {"█": "#", "▓": "=", "▒": "-", "░": ".", "×": "x", "–": "-", "…": "~", "≤": "<=", "Σ": "sum ", "ω": "omega"}
)


def fleet_table(fleet: Fleet) -> str:
    """The table of each replica, then what they are together."""
    tables = (f"replica {number}\n{plan_table(plan)}\n" for number, plan in enumerate(fleet.replicas))
    batch, seconds = fleet.workload, max(plan.estimate.total_s for plan in fleet.replicas if plan.estimate)
    rate = f"{batch.batch_size * batch.new_tokens / seconds:.1f} tokens/s"
    words = f"{len(fleet.replicas)} at the same time: {batch.batch_size} sequences in {duration(seconds)}, {rate}"
    facts = [("replicas", words), *([("solver", _solver_words(fleet.solver))] if fleet.solver else [])]
    return "\n".join([*tables, *(labelled(*fact) for fact in facts)])


def plan_table(plan: Plan) -> str:
    """Stages, bits, memory and seconds, then the promise and how sure it is."""
    assert plan.estimate and plan.quality, "a plan that the planner made"
    estimate, quality, workload = plan.estimate, plan.quality, plan.workload
    unit, unit_bytes = _memory_unit(plan)
    head = ("stage", "device", "layers", "bits", "memory", unit, "prefill", "decode")
    rows = []
    for stage, (parts, seconds) in enumerate(zip(estimate.memory_bytes, estimate.stage_seconds, strict=True)):
        device = plan.device_of(stage)
        rows.append(
            [
                str(stage),
                _elided(device_words(device), DEVICE_WIDTH),
                layers_words(plan, stage),
                _bits(_choices(plan, stage)),
                "",
                f"{sum(parts.values()) / unit_bytes:.1f} of {device.memory_bytes / unit_bytes:.1f}",
                duration(seconds["prefill"]),
                duration(seconds["decode"]),
            ]
        )
    others = sum(max(len(row[column]) for row in (head, *rows)) + 2 for column in range(len(head)) if column != 4)
    bar_width = min(WIDEST_BAR, max(NARROWEST_BAR, WIDTH - others))
    for row, parts, stage in zip(rows, estimate.memory_bytes, range(len(rows)), strict=True):
        row[4] = memory_bar(parts, plan.device_of(stage).memory_bytes, bar_width)
    facts = [
        ("memory", "  ".join(f"{block} {part.replace('kv_cache', 'KV cache')}" for part, block in BAR.items())),
        (
            "workload",
            f"{workload.batch_size} sequences, {workload.prompt_tokens} prompt + {workload.new_tokens} new tokens",
        ),
        ("prefill", f"{duration(estimate.prefill_s)} {predicted(plan)}, {_micro_batches(plan, Phase.PREFILL)}"),
        ("decode", f"{duration(estimate.decode_s)} {predicted(plan)}, {_micro_batches(plan, Phase.DECODE)}"),
        ("together", f"{duration(estimate.total_s)} {predicted(plan)}, {estimate.tokens_per_s:.1f} tokens/s"),
        ("quality", _quality_words(quality)),
    ]
    if plan.solver:
        facts.append(("solver", _solver_words(plan.solver)))
    if plan.solver and plan.solver.searched:
        facts.append(("searched", plan.solver.searched))
    if any("*" in row[3] for row in rows):
        facts.insert(0, ("bits", "* counted by bits; the order of the layers is in plan.json"))
    if any(device.is_emulated for device in plan.devices):
        facts.append(
            ("emulated", "a cpu device is a process with a memory budget, a slowed one sleeps: no real device")
        )
    table = text_table([head, *rows], right=(0, 5, 6, 7))
    return "\n".join([table, "", *(labelled(label, text) for label, text in facts)])


def _quality_words(quality: QualityPlan) -> str:
    measured = "" if quality.measured is None else f", {math.expm1(quality.measured):+.1%} measured on held-out text"
    return (
        f"loss {quality.predicted:.4f} of at most {quality.limit:.4f} {quality.unit}: perplexity "
        f"+{math.expm1(quality.predicted):.1%} predicted{measured}, +{quality.max_perplexity_increase:.1%} at most"
        + ", which is broken"
        * quality.is_broken
    )


def explanation_text(plan: Plan, explanation: "Explanation") -> str:
    """Free memory and idle time per device, then every finding in a sentence."""
    unit, unit_bytes = _memory_unit(plan)
    rows = [("stage", "device", "layers", "bits", f"free, {unit}", "idle", "in prefill", "in decode")]
    for stage, finding in enumerate(explanation.memory):
        rows.append(
            (
                str(stage),
                _elided(device_words(plan.device_of(stage)), DEVICE_WIDTH),
                layers_words(plan, stage),
                _bits(_choices(plan, stage)),
                f"{math.floor(finding.free_bytes / unit_bytes * 10) / 10} of {finding.memory_bytes / unit_bytes:.1f}",
                f"{finding.idle_share:.0%}",
                *(f"{finding.phase_idle_share[phase]:.0%}" for phase in Phase),
            )
        )
    return "\n".join([text_table(rows, right=(0, 4, 5, 6, 7)), "", *labelled_all(explanation.sentences)])


def labelled_all(sentences: Sequence[tuple[str, str]]) -> list[str]:
    """Each under what it is about, which is said once for those that follow each other."""
    before = ["", *(about for about, _ in sentences)]
    return [
        labelled("" if about == told else about, sentence)
        for told, (about, sentence) in zip(before, sentences, strict=False)
    ]


def what_if_table(found: "WhatIf") -> str:
    """The plan as things are and with the change, side by side."""
    columns = [_plan_column(outcome) for outcome in (found.now, found.changed)]
    rows = [("", "now", "changed")]
    for label, *cells in zip(PLAN_ROWS, *columns, strict=True):
        wrapped = [textwrap.wrap(cell, COLUMN_WIDTH) or [""] for cell in cells]
        for line, (now, changed) in enumerate(itertools.zip_longest(*wrapped, fillvalue="")):
            rows.append(("" if line else label, now, changed))
    return text_table(rows)


def _plan_column(outcome: "Plan | NoPlan") -> list[str]:
    """A cell for each of `PLAN_ROWS`."""
    if not isinstance(outcome, Plan):
        return [f"no plan: {outcome.why}", *[""] * (len(PLAN_ROWS) - 1)]
    assert outcome.estimate and outcome.quality and outcome.solver, "a plan that the planner made"
    estimate, quality, solver = outcome.estimate, outcome.quality, outcome.solver
    used = [outcome.device_of(stage) for stage in range(len(outcome.stages))]
    unused = [device.name for device in outcome.devices if device not in used]
    return [
        f"{len(used)} of {len(outcome.devices)}" + (f", without {', '.join(unused)}" if unused else ""),
        stages_words(outcome),
        _micro_batches(outcome, Phase.PREFILL),
        _micro_batches(outcome, Phase.DECODE),
        duration(estimate.prefill_s),
        duration(estimate.decode_s),
        f"{estimate.tokens_per_s:.1f}",
        f"{quality.predicted:.4f} of {quality.limit:.4f} {quality.unit}",
        f"{solver.gap:.2%}, {solver.status} in {solver.seconds:.1f} s",
    ]


def stages_words(plan: Plan) -> str:
    """``2 v100-32 (20+20), 3 t4 (9+9+10)``: neighbours of one type together, with their decoder layers."""
    stages = ((plan.device_of(stage).type, len(plan.decoder_range(stage))) for stage in range(len(plan.stages)))
    runs = ((name, [str(layers) for _, layers in run]) for name, run in itertools.groupby(stages, lambda s: s[0]))
    return ", ".join(f"{len(layers)} {name} ({'+'.join(layers)})" for name, layers in runs)


def pareto_table(front: "Front") -> str:
    """A row per plan of the front, and below how many were asked for."""
    rows = [("tokens/s", "perplexity", "quality loss", "devices", "stages", "gap")]
    rows += [
        (
            f"{point.tokens_per_s:.1f}",
            increase_words(point.perplexity_increase),
            f"{point.loss:.4f}",
            str(point.num_devices),
            _elided(stages_words(point.plan), PARETO_WIDTH),
            f"{point.gap:.2%}",
        )
        for point in front.points
    ]
    return f"{text_table(rows, right=(0, 1, 2, 3, 5))}\n{labelled('front', front.sentence)}"


def link_words(cluster: Cluster) -> str:
    """What the links of a changed cluster are taken to be."""
    pairs = [f"{source} to {target}" for source, target in cluster.unmeasured_pairs]
    if not pairs:
        return "as measured"
    alpha_us, gbit = link_figures(cluster.default_link)
    more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return f"default_link ({alpha_us} µs, {gbit} Gbit/s) for {pairs[0]}{more}"


def comparison_text(rows: Sequence["Compared"]) -> str:
    """A line for each planner, and below the table why some have no plan."""
    lines = labelled_all([("none", why) for why in comparison_reasons(rows)])
    return "\n".join([text_table(comparison_rows(rows), right=(1, 2, 3, 4, 5)), *lines])


def comparison_rows(rows: Sequence["Compared"]) -> list[tuple[str, ...]]:
    """The table's cells, its head first."""
    table = [("planner", "prefill", "decode", "tokens/s", "time", "loss", "fullest device")]
    for row in rows:
        if row.estimate is None:
            table.append((row.name, "none", "", "", "", "", ""))
            continue
        device, share = row.fullest
        table.append(
            (
                row.name,
                duration(row.estimate.prefill_s),
                duration(row.estimate.decode_s),
                f"{row.estimate.tokens_per_s:.1f}",
                f"{row.slower:.2f}×",
                f"{row.omega:.4f}",
                f"{share:.0%} of {_elided(device, DEVICE_WIDTH)}",
            )
        )
    return table


def comparison_reasons(rows: Sequence["Compared"]) -> list[str]:
    """Of those that have no plan."""
    return [f"{row.name}: {row.outcome.why}" for row in rows if row.estimate is None]


def predicted(plan: Plan, done: str = "predicted") -> str:
    """`"predicted"`, and what stands beside every figure of a plan for devices that nobody measured."""
    types = [name for name, source in plan.estimate.source.items() if source == SPEC_SHEET] if plan.estimate else []
    return f"{done} by the {SPEC_SHEET} ({', '.join(types)})" if types else done


def based_on(plan: Plan, cluster: Cluster, latency: LatencyModel) -> str:
    """What the seconds stand on: measured devices with their hold-out error, those nobody measured, the links."""
    sources = {device.timed_as: latency.source(device) for device in map(plan.device_of, range(len(plan.stages)))}
    said = []
    for name, source in sources.items():
        off = source.holdout
        regressions = sum(fit.method == "regression" for fit in source.fits.values())
        which = f"; regression for {regressions} of {len(source.fits)} fits" if regressions else ""
        error = f" (held-out points {off.mean:.1%} off, {off.worst:.1%} at worst{which})" if off else ""
        said.append(f"{name} {source.word}{error}")
    if cluster.unmeasured_pairs:
        said.append(link_words(cluster))
    elif cluster.host_pairs:
        said.append("links measured")
    is_missing = cluster.unmeasured_pairs or any(source.word == SPEC_SHEET for source in sources.values())
    return f"{', '.join(said)}" + ("; launch/measure.py measures what is not" if is_missing else "")


def link_figures(link: Link) -> tuple[str, str]:
    """α in µs and β in Gbit/s."""
    return f"{link.alpha_s * 1e6:.0f}", f"{link.bytes_per_s * 8 / 1e9:.2f}"


def stage_label(plan: Plan, stage: int) -> str:
    """``"localhost:1 cpu slowed 1.5×: 2×4 1×8"``: the device, what slows it, its layers by bits."""
    return f"{device_words(plan.device_of(stage))}: {run_lengths(_choices(plan, stage))}"


def device_words(device: Device) -> str:
    return f"{device.name} {device.type}" + (f" slowed {device.slowdown:g}×" if device.slowdown > 1 else "")


def layers_words(plan: Plan, stage: int) -> str:
    """``0–5 (6) + emb``: the decoder layers, and embedding, head or both (`ends`) where they stand; ``head at 8`` where
    it is quantised."""
    layers, last = plan.decoder_range(stage), len(plan.stages) - 1
    decoders = f"{'–'.join(map(str, sorted({layers[0], layers[-1]})))} ({len(layers)})" if layers else ""
    ends = [("emb", plan.embedding_choice)] * (stage == 0) + [("head", plan.head_choice)] * (stage == last)
    words = [f"{name} at {choice.bits}" if choice.is_quantised else name for name, choice in ends]
    return " + ".join(filter(None, [decoders, *(["ends"] if words == ["emb", "head"] else words)]))


def run_lengths(choices: Sequence[Choice]) -> str:
    """``"2×4 1×8"``: two layers at 4 bits, then one at 8."""
    groups = ((bits, len(list(group))) for bits, group in itertools.groupby(choice.bits for choice in choices))
    return " ".join(f"{count}×{bits}" for bits, count in groups)


def memory_bar(parts: dict[str, int], budget_bytes: int, width: int) -> str:
    """A block for each share of the budget: weights, KV cache, workspace, and what is free."""
    ends = [round(width * used / budget_bytes) for used in itertools.accumulate(parts[part] for part in list(BAR)[:-1])]
    starts = [0, *ends]
    return "".join(
        block * (end - start) for block, start, end in zip(BAR.values(), starts, [*ends, width], strict=True)
    )


def increase_words(increase: float) -> str:
    """``+0.29%``, and from ten times as much on ``404×``."""
    return f"+{increase:.2%}" if increase < 9 else f"{1 + increase:.0f}×"


def duration(seconds: float) -> str:
    """In seconds, or in ms where it is short."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def perplexity_table(found: Perplexity, text: Path) -> str:
    """Of a text: the figures, and what they are of."""
    return "\n".join(
        labelled(*fact)
        for fact in (
            ("perplexity", f"{found.perplexity:.4f}, {found.bits_per_byte:.4f} bits per byte"),
            ("scored", f"{found.scored_tokens} tokens, {found.scored_bytes:.0f} bytes"),
            ("windows", f"of {found.context_tokens} tokens, {found.stride_tokens} after each other"),
            ("text", f"{text}, digest {found.text_digest}"),
        )
    )


def agreement_text(found: "Agreement") -> str:
    return labelled(
        "agreement",
        f"{found.same_share:.2%} of the {found.answer_tokens} tokens of the unquantised model's answers, greedy, "
        f"{found.mean_common_tokens:.1f} tokens up to the first other one; {found.same_answers} of {found.answers} "
        "answers are the same",
    )


def labelled(label: str, text: str) -> str:
    """A label and what it says, in as many lines as it takes."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=label.ljust(LABEL_WIDTH),
        subsequent_indent=" " * LABEL_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )


def text_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Columns as wide as their widest cell, those in `right` flush right; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def encodable(text: str, encoding: str) -> str:
    """`text`, or where `encoding` can't take it, the nearest that it can: a sign for a sign, so that tables hold."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(IN_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _solver_words(solver: SolverReport) -> str:
    order = f"; of this order and these sizes {solver.order_bound:.4f} s by HiGHS" if solver.order_bound else ""
    return (
        f"{solver.status} in {solver.seconds:.1f} s: least closed form {solver.objective:.4f} s, "
        f"bound {solver.bound:.4f} s{order}, gap {solver.gap:.2%} ({solver.name})"
    )


def _memory_unit(plan: Plan) -> tuple[str, int]:
    return ("GiB", GIB) if max(device.memory_bytes for device in plan.devices) >= 4 * GIB else ("MiB", MIB)


def _choices(plan: Plan, stage: int) -> list[Choice]:
    return [plan.decoder_choices[layer] for layer in plan.decoder_range(stage)]


def _bits(choices: Sequence[Choice]) -> str:
    """The run lengths, or where they are too long, the count of each (`*`)."""
    runs = run_lengths(choices)
    if len(runs) <= BITS_WIDTH:
        return runs
    counts = Counter(choice.bits for choice in choices)
    return _elided(" ".join(f"{counts[bits]}×{bits}" for bits in sorted(counts)) + "*", BITS_WIDTH)


def _micro_batches(plan: Plan, phase: Phase) -> str:
    size = plan.prefill_micro_batch_size if phase is Phase.PREFILL else plan.decode_micro_batch_size
    count = num_micro_batches(plan.workload.batch_size, size)
    return f"{count} micro-batch{'es' * (count > 1)} of {size}"


def _elided(text: str, width: int) -> str:
    """`text` without its middle where it is wider."""
    if len(text) <= width:
        return text
    kept = width - 1
    return f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"

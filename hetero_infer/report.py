"""What people are shown of a plan: tables of text."""

import itertools
from collections.abc import Sequence

from hetero_infer.cost.latency import SPEC_SHEET
from hetero_infer.spec import Choice, Cluster, Link, Plan

MIB = 2**20


def plan_table(plan: Plan) -> str:
    """Stages, bits, memory and seconds, then the promise and how sure it is."""
    assert plan.estimate and plan.quality and plan.solver, "a plan that the planner made"
    estimate, quality, solver = plan.estimate, plan.quality, plan.solver
    rows = [("stage", "device", "layers", "bits", "memory MiB", "prefill ms", "decode ms")]
    for stage in range(len(plan.stages)):
        device, layers = plan.device_of(stage), plan.decoder_range(stage)
        used = sum(estimate.memory_bytes[stage].values())
        seconds = estimate.stage_seconds[stage]
        rows.append(
            (
                str(stage),
                f"{device.name} {device.type}" + (f" /{device.slowdown:g}" if device.slowdown > 1 else ""),
                f"{layers.start}-{layers.stop - 1} ({len(layers)})",
                run_lengths([plan.decoder_choices[layer] for layer in layers]),
                f"{used / MIB:.1f} of {device.memory_bytes / MIB:.1f}",
                f"{seconds['prefill'] * 1e3:.1f}",
                f"{seconds['decode'] * 1e3:.1f}",
            )
        )
    batch = plan.workload.batch_size
    lines = [
        text_table(rows),
        f"prefill: micro-batches of {plan.prefill_micro_batch_size}, decode: of {plan.decode_micro_batch_size} "
        f"(batch {batch}, {plan.workload.prompt_tokens} prompt + {plan.workload.new_tokens} new tokens)",
        f"predicted{by_the_spec_sheet(plan)}: prefill {estimate.prefill_s:.2f} s, decode {estimate.decode_s:.2f} s, "
        f"{estimate.tokens_per_s:.1f} tokens/s",
        f"quality: {quality.predicted:.4f} of {quality.limit:.4f} {quality.unit} "
        f"(perplexity +{quality.max_perplexity_increase:.1%} at most)",
        f"solver: {solver.name}, {solver.status} in {solver.seconds:.1f} s, closed form {solver.objective:.4f} s, "
        f"bound {solver.bound:.4f} s, gap {solver.gap:.2%}",
    ]
    if any(device.is_emulated for device in plan.devices):
        lines.append("devices are emulated: cpu processes with a memory budget, slowed by sleeping where /x is said")
    return "\n".join(lines)


def by_the_spec_sheet(plan: Plan) -> str:
    """`" by the spec sheet (t4, v100-32)"`: the word that stands beside every prediction of a plan that needed it."""
    types = [name for name, source in plan.estimate.source.items() if source == SPEC_SHEET] if plan.estimate else []
    return f" by the {SPEC_SHEET} ({', '.join(types)})" if types else ""


def sources_line(plan: Plan, cluster: Cluster) -> str:
    """What the prediction stands on: measured devices with their hold-out error, those nobody measured, the links."""
    assert plan.estimate, "a plan that the planner made"
    said = []
    for name, source in plan.estimate.source.items():
        error = plan.estimate.holdout_mean.get(name)
        said.append(f"{name} {source}" + (f" ({error:.1%} off on points held out)" if error is not None else ""))
    default = [f"{source} to {target}" for source, target in cluster.unmeasured_pairs]
    if default:
        more = f" and {len(default) - 1} more" if len(default) > 1 else ""
        alpha_us, gbit = link_figures(cluster.default_link)
        said.append(f"default_link ({alpha_us} µs, {gbit} Gbit/s) for {default[0]}{more}")
    elif cluster.host_pairs:
        said.append("links measured")
    missing = by_the_spec_sheet(plan) or default
    return f"based on: {', '.join(said)}" + ("; launch/measure.py measures what is not" if missing else "")


def link_figures(link: Link) -> tuple[str, str]:
    """α in µs and β in Gbit/s."""
    return f"{link.alpha_s * 1e6:.0f}", f"{link.bytes_per_s * 8 / 1e9:.2f}"


def stage_label(plan: Plan, stage: int) -> str:
    """``"localhost:1 cpu /1.5: 2x4 1x8"``: the device, what slows it, its layers by bits."""
    device, layers = plan.device_of(stage), plan.decoder_range(stage)
    slowed = f" /{device.slowdown:g}" if device.slowdown > 1 else ""
    return f"{device.name} {device.type}{slowed}: {run_lengths([plan.decoder_choices[layer] for layer in layers])}"


def run_lengths(choices: Sequence[Choice]) -> str:
    """``"2x4 1x8"``: two layers at 4 bits, then one at 8."""
    groups = ((bits, len(list(group))) for bits, group in itertools.groupby(choice.bits for choice in choices))
    return " ".join(f"{count}x{bits}" for bits, count in groups)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

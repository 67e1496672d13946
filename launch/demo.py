"""The demo: plan, quantise and run the package's own model over three emulated devices, and compare.

Every step is a command that you could type; they are printed as they run. Needs no GPU and no network.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hetero_infer.ctrl_c import end_with_one_line

end_with_one_line()  # Ctrl-C may come while the rest is imported

from hetero_infer.report import text_table  # noqa: E402
from hetero_infer.spec import HeteroInferError, Plan, RunConfig  # noqa: E402

CONFIG = Path("launch/batch.toml")
PROMPTS = Path("launch/prompts.jsonl")
BIN = Path(sys.executable).parent


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    work = Path("out/demo")
    answers, summary_path = work / "answers.jsonl", work / "summary.json"
    config = RunConfig.load(CONFIG)
    run("hetero-infer", "plan", "--hold", "-c", CONFIG)
    run(
        *("deepspeed", "--hostfile", config.hostfile, "--no_ssh_check", "--master_addr", "127.0.0.1", "--quiet"),
        *("launch/batch.py", "-c", CONFIG, "--plan", config.plan),
        *("-i", PROMPTS, "-o", answers, "--summary", summary_path),
    )
    unquantised = json.loads(run("hetero-infer", "evaluate", "-c", CONFIG, "--json", capture=True))
    quantised = json.loads(run("hetero-infer", "evaluate", config.checkpoint, "-c", CONFIG, "--json", capture=True))
    plan, summary = Plan.load(config.plan), json.loads(summary_path.read_text())
    print(f"\n{samples(answers)}\n\n{comparison(plan, summary)}\n\n{quality(plan, unquantised, quantised)}")
    print(f"\nplan: {config.plan}   answers: {answers}   devices are emulated, see {config.hostfile}")
    return 0


def run(command: str, *arguments: object, capture: bool = False) -> str:
    words = [command, *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    done = subprocess.run(
        [BIN / command, *words[1:]],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        env=os.environ | {"PATH": path, "DS_ACCELERATOR": "cpu"},
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def samples(answers: Path, count: int = 2) -> str:
    prompts = {line["custom_id"]: line["body"]["prompt"] for line in read_lines(PROMPTS)}
    lines = []
    for answer in read_lines(answers)[:count]:
        text = answer["response"]["body"]["choices"][0]["text"]
        lines.append(f"{answer['custom_id']}: …{' '.join(prompts[answer['custom_id']].split())[-60:]}")
        lines.append(f"        -> {' '.join(text.split())}")
    return "\n".join(lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparison(plan: Plan, summary: dict[str, Any]) -> str:
    """Predicted beside measured; the prompts fill whole batches of the plan's own lengths."""
    assert plan.estimate
    batches = math.ceil(summary["requests"] / plan.workload.batch_size)
    rows = [("phase", "tokens", "predicted s", "measured s", "measured/predicted", "tokens/s")]
    decoded = summary["new_tokens"] - summary["requests"]  # the first token of every answer comes from its prefill
    summary["total_s"] = summary["prefill_s"] + summary["decode_s"]
    for phase, tokens in (
        ("prefill", summary["prompt_tokens"]),
        ("decode", decoded),
        ("total", summary["new_tokens"]),
    ):
        predicted = batches * getattr(plan.estimate, f"{phase}_s")
        measured = summary[f"{phase}_s"]
        ratio = f"{measured / predicted:.2f}"
        rows.append((phase, str(tokens), f"{predicted:.2f}", f"{measured:.2f}", ratio, f"{tokens / measured:.0f}"))
    return text_table(rows)


def quality(plan: Plan, unquantised: dict[str, Any], quantised: dict[str, Any]) -> str:
    assert plan.quality
    before, after = unquantised["perplexity"], quantised["perplexity"]
    rows = [
        ("held-out text", "perplexity", "bits per byte", "increase"),
        ("unquantised", f"{before:.3f}", f"{unquantised['bits_per_byte']:.4f}", ""),
        ("predicted", f"{before * math.exp(plan.quality.predicted):.3f}", "", increase(plan.quality.predicted)),
        ("quantised", f"{after:.3f}", f"{quantised['bits_per_byte']:.4f}", f"{after / before - 1:+.2%}"),
        ("bound", f"{before * math.exp(plan.quality.limit):.3f}", "", increase(plan.quality.limit)),
    ]
    return text_table(rows)


def increase(nats: float) -> str:
    return f"{math.expm1(nats):+.2%}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HeteroInferError as error:
        sys.exit(f"hetero-infer: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; what is made so far is used again next time")

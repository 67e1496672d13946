"""100 prompts through `launch/batch.py` on three stages, beside one process of `transformers`, in the same run.

The two take turns; medians are compared. Loading is not counted, on either side. The stages are not slowed down and
have memory enough for 16 bits, so both compute the same, in float32. Writes a table to stdout.

    python launch/bench_batch.py --rounds 3
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from hetero_infer.report import text_table
from hetero_infer.spec.config import DEMO_MODEL

STAGES, PROMPTS, NEW_TOKENS, LONGEST_PROMPT, BATCH_SIZE = 3, 100, 32, 64, 32
BIN = Path(sys.executable).parent
CONFIG = """
model = {{ path = "demo" }}
cluster = {{ hostfile = "{work}/hostfile", default_link = {{ alpha_s = 3e-4, bytes_per_s = 1e9 }} }}
workload = {{ batch_size = {batch}, prompt_tokens = {prompt}, new_tokens = {new} }}
quality = {{ choices = [{{ bits = 16 }}] }}
paths = {{ work = "{work}" }}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/bench"))
    parser.add_argument("--transformers", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.transformers:
        return answer_with_transformers(args.work, args.transformers)

    prepare(args.work)
    seconds: dict[str, list[float]] = {}
    answers: dict[str, dict[str, list[int]]] = {}
    ways = {
        f"hetero-infer, {STAGES} stages of 1 thread": run_pipeline,
        "transformers, 1 thread": lambda work: run_transformers(work, 1),
        f"transformers, {os.cpu_count()} threads": lambda work: run_transformers(work, os.cpu_count() or 1),
    }
    for _ in range(args.rounds):
        for name, way in ways.items():
            spent_s, answers[name] = way(args.work)
            seconds.setdefault(name, []).append(spent_s)
    print(table(seconds, answers))
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {args.rounds} rounds")
    return 0


def prepare(work: Path) -> None:
    """Prompts of unequal length from the held-out text, a config and a hostfile."""
    from tokenizers import Tokenizer

    work.mkdir(parents=True, exist_ok=True)
    ids = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")).encode((DEMO_MODEL / "heldout.txt").read_text()).ids
    lengths = [8 + 7 * i % (LONGEST_PROMPT - 7) for i in range(PROMPTS)]
    starts = [i * (len(ids) - LONGEST_PROMPT) // PROMPTS for i in range(PROMPTS)]
    lines = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": ids[start : start + length], "max_tokens": NEW_TOKENS},
        }
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    (work / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "hostfile").write_text(f"localhost slots={STAGES}  # gpu=cpu memory=256MiB threads=1\n")
    config = CONFIG.format(work=work, batch=BATCH_SIZE, prompt=LONGEST_PROMPT, new=NEW_TOKENS)
    (work / "run.toml").write_text(config)


def run_pipeline(work: Path) -> tuple[float, dict[str, list[int]]]:
    launcher = ["deepspeed", "--hostfile", "hostfile", "--no_ssh_check", "--master_addr", "127.0.0.1", "--quiet"]
    launcher[2] = str(work / "hostfile")
    job = ["launch/batch.py", "-c", "run.toml", "-i", "prompts.jsonl", "-o", "answers.jsonl", "--summary", "sum.json"]
    job[2::2] = [str(work / name) for name in job[2::2]]
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "DS_ACCELERATOR": "cpu"}
    subprocess.run([BIN / launcher[0], *launcher[1:], *job], check=True, env=environment)
    summary = json.loads((work / "sum.json").read_text())
    answers = [json.loads(line) for line in (work / "answers.jsonl").read_text().splitlines()]
    tokens = {answer["custom_id"]: answer["response"]["body"]["choices"][0]["token_ids"] for answer in answers}
    return summary["prefill_s"] + summary["decode_s"], tokens


def run_transformers(work: Path, threads: int) -> tuple[float, dict[str, list[int]]]:
    command = [sys.executable, __file__, "--work", str(work), "--transformers", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["tokens"]


def answer_with_transformers(work: Path, threads: int) -> int:
    """The same file in batches of the same size, padded on the left, greedy, in float32."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    model = LlamaForCausalLM.from_pretrained(DEMO_MODEL, torch_dtype=torch.float32)
    end_of_text = model.config.eos_token_id
    lines = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]

    def generate(batch: list[dict[str, Any]]) -> dict[str, list[int]]:
        prompts = [line["body"]["prompt"] for line in batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[end_of_text] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=end_of_text
        )
        return {line["custom_id"]: row[width:].tolist() for line, row in zip(batch, rows, strict=True)}

    generate(lines[:BATCH_SIZE])  # warm-up, as the workers have one
    began_s = time.perf_counter()
    tokens: dict[str, list[int]] = {}
    for first in range(0, len(lines), BATCH_SIZE):
        tokens |= generate(lines[first : first + BATCH_SIZE])
    print(json.dumps({"seconds": time.perf_counter() - began_s, "tokens": tokens}))
    return 0


def table(seconds: dict[str, list[float]], answers: dict[str, dict[str, list[int]]]) -> str:
    ours = next(iter(seconds))
    new_tokens = sum(map(len, answers[ours].values()))
    rows = [("way", "median s", "each s", "new tokens/s", "ratio", "answers as ours")]
    for name, spent in seconds.items():
        middle = statistics.median(spent)
        same = sum(_starts_alike(answers[ours][key], answers[name][key]) for key in answers[ours])
        each = " ".join(f"{s:.2f}" for s in spent)
        ratio = f"{middle / statistics.median(seconds[ours]):.2f}"
        rows.append(
            (name, f"{middle:.2f}", each, f"{new_tokens / middle:.0f}", ratio, f"{same} of {len(answers[ours])}")
        )
    return text_table(rows)


def _starts_alike(ours: list[int], theirs: list[int]) -> bool:
    """`transformers` goes on with padding after the end of a text."""
    return ours == theirs[: len(ours)]


if __name__ == "__main__":
    sys.exit(main())

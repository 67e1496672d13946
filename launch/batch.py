"""A batch job: `deepspeed --hostfile hostfiles/mix launch/batch.py -i in.jsonl -o out.jsonl`, or under `mpirun`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hetero_infer.ctrl_c import end_with_one_line

end_with_one_line(exit_code=75)  # Ctrl-C may come while the rest is imported; nothing is lost by it

from hetero_infer.serving.batch_file import BatchJob, BatchSummary  # noqa: E402
from hetero_infer.spec import HeteroInferError  # noqa: E402
from hetero_infer.spec.files import write_atomically  # noqa: E402
from hetero_infer.supervisor.say import say  # noqa: E402
from hetero_infer.supervisor.setup import Commands, Limits, Setup  # noqa: E402
from hetero_infer.supervisor.supervise import supervise  # noqa: E402


def main(commands: Commands = Commands(), limits: Limits = Limits()) -> int:  # noqa: B008 (both are frozen)
    parser = argparse.ArgumentParser(description="Answer a file of OpenAI batch lines over the pipeline.")
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="IN.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jsonl")
    parser.add_argument("-c", "--config", type=Path, default=Path("launch/batch.toml"))
    parser.add_argument("--plan", type=Path, help="use this plan.json instead of making one")
    parser.add_argument("--summary", type=Path, help="write the summary there, as JSON")
    parser.add_argument("--local_rank", "--local-rank", help="given by the launcher; not used")
    args = parser.parse_args()
    job = BatchJob(args.input, args.output)
    exit_code = supervise(job, Setup(args.config, args.plan, commands, limits))
    if job.summary and exit_code == 0:
        print(as_table(job.summary))
        if args.summary:
            return write_summary(args.summary, job.summary)
    return exit_code


def write_summary(path: Path, summary: BatchSummary) -> int:
    try:
        write_atomically(path, json.dumps(asdict(summary), indent=1) + "\n")
    except HeteroInferError as error:
        say(error)
        return error.exit_code
    return 0


def as_table(summary: BatchSummary) -> str:
    rows = [
        ("requests", f"{summary.requests} ({summary.failed} failed)"),
        ("prefill", _rate(summary.prompt_tokens, summary.prefill_s)),
        # The first token of every answer comes from its prefill.
        ("decode", _rate(summary.new_tokens - (summary.requests - summary.failed), summary.decode_s)),
    ]
    if len(summary.replicas) > 1:
        for number, replica in enumerate(summary.replicas):
            rows.append((f"replica {number}", f"{replica.requests} requests, {replica.new_tokens} new tokens"))
    return "\n".join(f"{name:11}{value}" for name, value in rows)


def _rate(tokens: int, seconds: float) -> str:
    rate = f" = {tokens / seconds:.1f} tokens/s" if seconds else ""
    return f"{tokens} tokens in {seconds:.2f} s{rate}"


if __name__ == "__main__":
    sys.exit(main())

"""Perplexity over the pipeline: `deepspeed --hostfile hostfiles/mix launch/evaluate.py --text heldout.txt`.

The same figure as that of `hetero-infer evaluate` with the same context and stride, from the stages that serve.
"""

import argparse
import json
import sys
from pathlib import Path

from hetero_infer.ctrl_c import end_with_one_line

end_with_one_line()  # Ctrl-C may come while the rest is imported

from hetero_infer.report import labelled, perplexity_table  # noqa: E402
from hetero_infer.serving.evaluation import EvaluationJob  # noqa: E402
from hetero_infer.spec import HeteroInferError  # noqa: E402
from hetero_infer.spec.files import write_atomically  # noqa: E402
from hetero_infer.supervisor.say import say  # noqa: E402
from hetero_infer.supervisor.setup import Commands, Limits, Setup  # noqa: E402
from hetero_infer.supervisor.supervise import supervise  # noqa: E402


def main(commands: Commands = Commands(), limits: Limits = Limits()) -> int:  # noqa: B008 (both are frozen)
    parser = argparse.ArgumentParser(description="Perplexity of a text over the pipeline.")
    parser.add_argument("-c", "--config", type=Path, default=Path("launch/batch.toml"))
    parser.add_argument("--plan", type=Path, help="use this plan.json instead of making one")
    parser.add_argument("--text", type=Path, help="(default: as the config says)")
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="of a window (default: the plan's prompt_tokens, at most 512)"
    )
    parser.add_argument("--stride", type=int, metavar="TOKENS", help="from window to window (default: the context)")
    parser.add_argument("--summary", type=Path, help="write the figures there, as JSON")
    parser.add_argument("--local_rank", "--local-rank", help="given by the launcher; not used")
    args = parser.parse_args()
    job = EvaluationJob(args.text, args.context, args.stride)
    exit_code = supervise(job, Setup(args.config, args.plan, commands, limits))
    if not job.found or exit_code:
        return exit_code
    for number, found in enumerate(job.found):
        if len(job.found) > 1:
            print(labelled("replica", str(number)))
        print(perplexity_table(found, job.text))
    return write_summary(args.summary, job) if args.summary else 0


def write_summary(path: Path, job: EvaluationJob) -> int:
    try:
        write_atomically(path, json.dumps({"replicas": [found.to_json() for found in job.found]}, indent=1) + "\n")
    except HeteroInferError as error:
        say(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

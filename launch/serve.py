"""The server: `deepspeed --hostfile hostfiles/mix launch/serve.py`, until Ctrl-C."""

import argparse
import sys
from pathlib import Path

from hetero_infer.ctrl_c import end_with_one_line

end_with_one_line(exit_code=0)  # Ctrl-C may come while the rest is imported

from hetero_infer.serving.http import ServeJob  # noqa: E402
from hetero_infer.supervisor.setup import Commands, Limits, Setup  # noqa: E402
from hetero_infer.supervisor.supervise import supervise  # noqa: E402


def main(commands: Commands = Commands(), limits: Limits = Limits()) -> int:  # noqa: B008 (both are frozen)
    parser = argparse.ArgumentParser(description="Serve OpenAI completions over the pipeline.")
    parser.add_argument("-c", "--config", type=Path, default=Path("launch/serve.toml"))
    parser.add_argument("--plan", type=Path, help="use this plan.json instead of making one")
    parser.add_argument("--local_rank", "--local-rank", help="given by the launcher; not used")
    args = parser.parse_args()
    return supervise(ServeJob(), Setup(args.config, args.plan, commands, limits))


if __name__ == "__main__":
    sys.exit(main())

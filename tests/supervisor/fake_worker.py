"""A worker without a model: it answers with the prompt reversed.

Token 99 first makes it wait for its end, token 98 first for the request to be cancelled.
"""

import argparse
import json
import os
import time
from pathlib import Path

from hetero_infer.supervisor.channel import WorkerChannel

HANG, UNTIL_CANCELLED = 99, 98


def main() -> None:
    channel = WorkerChannel.from_environment()
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    folder = args.config.parent
    facts = {"pid": os.getpid(), "environment": dict(os.environ)}
    (folder / f"worker-{args.device}.json").write_text(json.dumps(facts))
    print("this goes to stderr", flush=True)
    assert args.plan.exists()
    channel.send({"event": "ready"})
    told_to_stop = folder / "workers-stop"
    if os.environ["RANK"] == "0":
        answer(channel)
        told_to_stop.touch()  # a real pipeline tells the other stages through its messages
    while not told_to_stop.exists():
        time.sleep(0.02)


def answer(channel: WorkerChannel) -> None:
    while (command := channel.receive())["command"] != "shutdown":
        new_tokens = 0
        for request in command["requests"]:
            if request["prompt"][0] == HANG:
                time.sleep(100)
            tokens = request["prompt"][::-1][: request["max_tokens"]]
            new_tokens += len(tokens)
            channel.send({"event": "tokens", "request": request["id"], "tokens": tokens})
            if request["prompt"][0] == UNTIL_CANCELLED:
                assert channel.receive() == {"command": "cancel", "request": request["id"]}
            else:
                channel.send({"event": "finished", "request": request["id"], "reason": "length"})
        time.sleep(0.05)  # its answers are known before the batch is done
        prompt_tokens = sum(len(request["prompt"]) for request in command["requests"])
        counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        channel.send({"event": "batch_done", "prefill_s": 0.5, "decode_s": 0.25, **counts})


if __name__ == "__main__":
    main()

"""The worker: one process, one stage. Started by a supervisor, which it obeys over its channel (docs/supervisor.md).

python -m hetero_infer.pipeline.worker --plan plan.json --config run.toml --device localhost:0
"""

import argparse
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from hetero_infer.spec import Fleet, HeteroInferError, Plan, RunConfig
from hetero_infer.spec.sampling import Sampling
from hetero_infer.supervisor.channel import WorkerChannel

NEIGHBOUR_LEFT = ("Connection closed by peer", "Connection reset by peer")  # gloo's words


def main() -> int:
    channel = WorkerChannel.from_environment()  # first: its heartbeat covers what takes long below
    parser = argparse.ArgumentParser(description="One stage of a pipeline; a supervisor starts it.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--device", required=True, help="whose stage it is")
    args = parser.parse_args()
    try:
        _work(channel, *Fleet.load(args.plan).stage_on(args.device), RunConfig.load(args.config))
    except Exception as error:
        is_second_hand = any(words in str(error) for words in NEIGHBOUR_LEFT)  # supervisors say who left, and why
        if not isinstance(error, HeteroInferError) and not is_second_hand:
            traceback.print_exc()
        channel.send({"event": "failed", "error": str(error) or repr(error)})
        return error.exit_code if isinstance(error, HeteroInferError) else 1
    return 0


def _work(channel: WorkerChannel, plan: Plan, stage: int, config: RunConfig) -> None:
    from hetero_infer.pipeline.device import PeakMemory, join_process_group

    runtime = join_process_group(plan.device_of(stage))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

    from hetero_infer.checkpoint.model_folder import ModelFolder  # what imports DeepSpeed comes after joining
    from hetero_infer.checkpoint.shards import ShardStore
    from hetero_infer.pipeline.stage import build_engine

    folder = ModelFolder(config.model)  # its digest was compared with the plan's when this host quantised
    has_shards = any(choice.is_quantised for choice in plan.stages[stage].layers) and not folder.spec.stored_choices
    shards = ShardStore.of_model(config.checkpoint, plan.model["digest"], plan.layer_choices) if has_shards else None
    peak_memory = PeakMemory(runtime.device)
    engine = build_engine(plan, stage, folder, shards, runtime)
    (_lead if stage == 0 else _follow)(channel, engine, plan)
    channel.send({"event": "peak_memory", "num_bytes": peak_memory.num_bytes})


def _lead(channel: WorkerChannel, engine: Any, plan: Plan) -> None:
    engine.generate(_warm_up_batch(plan))
    channel.send({"event": "ready"})
    while (command := channel.receive())["command"] != "shutdown":
        if command["command"] == "generate":  # a cancellation that comes late has nothing left to cancel
            _generate(channel, engine, command["requests"])
    engine.shut_down()


def _follow(channel: WorkerChannel, engine: Any, plan: Plan) -> None:
    engine.follow()  # the warm-up batch
    channel.send({"event": "ready"})
    while engine.follow():
        pass


def _warm_up_batch(plan: Plan) -> list[Any]:
    """A full batch of the plan's prompts and two tokens: the first request shall not pay for first times."""
    from hetero_infer.pipeline.generation import Sequence

    workload = plan.workload
    new_tokens = min(2, workload.new_tokens)
    return [Sequence("warm-up", (0,) * workload.prompt_tokens, new_tokens) for _ in range(workload.batch_size)]


def _generate(channel: WorkerChannel, engine: Any, requests: list[dict[str, Any]]) -> None:
    from hetero_infer.pipeline.generation import Sequence

    running = {
        request["id"]: Sequence(
            request["id"],
            tuple(request["prompt"]),
            request["max_tokens"],
            Sampling(**request["sampling"]),
            frozenset(request["stop_ids"]),
        )
        for request in requests
    }

    def report(sequence: Sequence) -> None:
        sampled = sequence.sampled
        event = {"event": "tokens", "request": sequence.request, "tokens": [sampled.token]}
        event |= {"logprobs": [sampled.logprobs]} if sampled.logprobs else {}
        channel.send(event | ({"prompt_logprobs": sampled.prompt_logprobs} if sampled.prompt_logprobs else {}))
        if sequence.finish_reason:
            channel.send({"event": "finished", "request": sequence.request, "reason": sequence.finish_reason})
        while command := channel.receive(timeout_s=0):
            cancelled = running.get(command["request"])  # none of an earlier batch
            if cancelled:
                cancelled.is_cancelled = True

    sequences = list(running.values())
    seconds = engine.generate(sequences, report)
    channel.send(
        {
            "event": "batch_done",
            "prefill_s": seconds.prefill_s,
            "decode_s": seconds.decode_s,
            "prompt_tokens": sum(len(sequence.prompt) for sequence in sequences),
            "new_tokens": sum(len(sequence.tokens) for sequence in sequences),
        }
    )


def leave(code: int) -> NoReturn:
    """End the process without finalising Python.

    A thread of gloo lets go of the last broadcast's tensor some time after it, and asks for the interpreter's lock to
    do so. While Python is being finalised that ends the thread inside a destructor, and the process with SIGABRT.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())

"""One stage of the pipelines that `running.py` starts: builds an engine for each case, one after the other.

python -m tests.pipeline.stage_process CASES.json STAGE RESULTS.json
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from hetero_infer.pipeline.device import join_process_group
from hetero_infer.pipeline.worker import leave
from hetero_infer.spec import HeteroInferError, Plan

RUNTIME_DOES_WITHOUT = ("auto_gptq", "transformers", "pyomo", "highspy", "tests.greedy")


def main() -> None:
    cases_path, stage, results_path = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    cases = json.loads(cases_path.read_text())
    runtime = join_process_group(Plan.load(Path(cases[0]["plan"])).device_of(stage))
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    results = [_run(case, stage, runtime) for case in cases]
    imported = [name for name in RUNTIME_DOES_WITHOUT if name in sys.modules]
    results_path.write_text(json.dumps({"results": results, "imported": imported}))


def _run(case: dict[str, Any], stage: int, runtime: Any) -> dict[str, Any]:
    from hetero_infer.checkpoint.model_folder import ModelFolder
    from hetero_infer.checkpoint.shards import ShardStore
    from hetero_infer.pipeline.generation import Sequence
    from hetero_infer.pipeline.stage import build_engine
    from hetero_infer.spec.sampling import Sampling

    plan, folder = Plan.load(Path(case["plan"])), ModelFolder(Path(case["folder"]))
    shards = ShardStore.of_model(Path(case["checkpoint"]), folder.digest) if case["checkpoint"] else None
    try:
        engine = build_engine(plan, stage, folder, shards, runtime)
    except HeteroInferError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if stage > 0:
        while engine.follow():
            pass
        return {}
    batches = []
    for requests in case["batches"]:
        sequences = [
            Sequence(
                request["id"],
                tuple(request["prompt"]),
                request["max_tokens"],
                Sampling(**request["sampling"]),
                frozenset(request["stop_ids"]),
            )
            for request in requests
        ]
        cancel_after = {request["id"]: request["cancel_after"] for request in requests}
        called: list[tuple[str, int]] = []
        logprobs: dict[str, list[Any]] = {request["id"]: [] for request in requests}
        of_prompts: dict[str, list[float]] = {request["id"]: [] for request in requests}

        def note(
            sequence: Sequence,
            called: Any = called,
            logprobs: Any = logprobs,
            of_prompts: Any = of_prompts,
            cancel_after: Any = cancel_after,
        ) -> None:
            called.append((sequence.request, len(sequence.tokens)))
            logprobs[sequence.request].append(sequence.sampled.logprobs)
            of_prompts[sequence.request] += sequence.sampled.prompt_logprobs
            sequence.is_cancelled = len(sequence.tokens) == cancel_after[sequence.request]

        seconds = engine.generate(sequences, note)
        batches.append(
            {
                "tokens": {sequence.request: sequence.tokens for sequence in sequences},
                "reasons": {sequence.request: sequence.finish_reason for sequence in sequences},
                "called": called,
                "logprobs": logprobs,
                "prompt_logprobs": of_prompts,
                "seconds": [seconds.prefill_s, seconds.decode_s],
            }
        )
    engine.shut_down()
    return {"batches": batches}


if __name__ == "__main__":
    main()
    leave(0)

"""A batch file is answered in order, and a bad line fails alone."""

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hetero_infer.serving.batch_file import BatchJob, BatchSummary
from hetero_infer.serving.engine_client import Totals
from hetero_infer.spec import InputError
from hetero_infer.spec.config import DEMO_MODEL

MODEL_CONFIG = {"model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 8}
MODEL_CONFIG |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0}


def line(custom_id: object, prompt: object, **more: object) -> str:
    entry = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions"}
    return json.dumps(entry | {"body": {"prompt": prompt, "max_tokens": 2}} | more)


def run_batch(folder: Path, pipeline, *lines: str | bytes, **config: int) -> tuple[list[dict], BatchSummary]:
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG | config))
    data = [entry.encode() if isinstance(entry, str) else entry for entry in lines]
    (folder / "in.jsonl").write_bytes(b"\n".join(data) + b"\n")
    job = BatchJob(folder / "in.jsonl", folder / "out.jsonl")
    job.open(SimpleNamespace(model=folder))
    asyncio.run(asyncio.wait_for(job.run([pipeline]), 10))
    assert not (folder / "out.jsonl.part").exists()
    return list(map(json.loads, (folder / "out.jsonl").read_text().splitlines())), job.summary


def test_answers_stand_in_the_order_of_the_questions(tmp_path: Path, pipeline) -> None:
    answers, summary = run_batch(tmp_path, pipeline, *(line(f"q{n}", [n, n + 1]) for n in range(1, 12)))
    assert [answer["custom_id"] for answer in answers] == [f"q{n}" for n in range(1, 12)]
    assert answers[4]["response"]["body"]["choices"][0]["token_ids"] == [6, 5]
    assert answers[4]["response"]["status_code"] == 200 and answers[4]["error"] is None
    assert [len(command["requests"]) for command in pipeline.commands] == [4, 4, 3]
    counts = {"prompt_tokens": 22, "new_tokens": 11, "prefill_s": 3.0, "decode_s": 1.5}
    assert summary == BatchSummary(11, 0, **counts, replicas=(Totals(11, **counts),))


def test_replicas_work_at_the_same_time_so_their_longest_seconds_count() -> None:
    totals = (Totals(6, 60, 12, prefill_s=1.0, decode_s=4.0), Totals(4, 40, 8, prefill_s=2.0, decode_s=3.0))
    assert BatchSummary.of(11, 1, totals) == BatchSummary(11, 1, 100, 20, 2.0, 4.0, totals)


@pytest.mark.parametrize(
    ("bad", "custom_id", "message"),
    [
        ("{not json", None, "not JSON"),
        (b"\xff\xfe\xfd", None, "not JSON"),
        ("[" * 100_000, None, "not JSON"),
        ("[]", None, "not a JSON object"),
        (line(None, [1]), None, "custom_id is missing"),
        (line("good", [1]), None, "stands in an earlier line"),
        (line("bad", [1], method="GET"), "bad", "only POST"),
        (line("bad", [1], url="/v1/embeddings"), "bad", "only /v1/completions or /v1/chat/completions"),
        (line("bad", [1], url=["/v1/completions"]), "bad", "only /v1/completions or"),
        (line("bad", [1], url="/v1/chat/completions", body={"messages": [{}]}), "bad", "no chat template"),
        (line("bad", [1], body=None), "bad", "must be a JSON object"),
        (line("bad", [1] * 40), "bad", "the prompt has 40 tokens and this plan has room for 8"),
        (line("bad", 0, body={"prompt": [1] * 8, "max_tokens": 10}), "bad", "of the 16 this plan has room for"),
        (line("bad\ud800", [1], method="GET"), "bad\ud800", "only POST"),
    ],
)
def test_a_bad_line_fails_alone(
    tmp_path: Path, pipeline, bad: str | bytes, custom_id: str | None, message: str
) -> None:
    answers, summary = run_batch(tmp_path, pipeline, line("good", [1]), bad, "", line("better", [2]))
    assert [answer["custom_id"] for answer in answers] == ["good", custom_id, "better"]
    assert answers[1]["response"] is None
    assert message in answers[1]["error"]["message"] and "line 2" in answers[1]["error"]["message"]
    assert [answer["error"] is None for answer in answers] == [True, False, True]
    assert (summary.requests, summary.failed) == (3, 1)


def test_an_empty_file_is_a_batch_of_nothing(tmp_path: Path, pipeline) -> None:
    answers, summary = run_batch(tmp_path, pipeline, "")
    assert answers == [] and summary.requests == 0


def test_a_missing_input_or_folder_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl"):
        BatchJob(tmp_path / "in.jsonl", tmp_path / "out.jsonl").open(SimpleNamespace(model=tmp_path))
    (tmp_path / "in.jsonl").touch()
    with pytest.raises(InputError, match="not there or not writable"):
        BatchJob(tmp_path / "in.jsonl", tmp_path / "no" / "out.jsonl").open(SimpleNamespace(model=tmp_path))


def test_a_cancelled_batch_keeps_what_is_done_apart(tmp_path: Path, pipeline) -> None:
    send = pipeline.send
    pipeline.send = lambda command: send(command) if not pipeline.commands else None  # only the first batch
    with pytest.raises(TimeoutError):
        (tmp_path / "config.json").write_text(json.dumps(MODEL_CONFIG))
        (tmp_path / "in.jsonl").write_text("\n".join(line(f"q{n}", [n]) for n in range(1, 12)))
        job = BatchJob(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        job.open(SimpleNamespace(model=tmp_path))
        asyncio.run(asyncio.wait_for(job.run([pipeline]), 0.5))
    assert not (tmp_path / "out.jsonl").exists()
    assert len((tmp_path / "out.jsonl.part").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("output", "message"),
    [("in.jsonl", "would replace the input"), (".", "a folder; name a file"), ("no/out.jsonl", "not there")],
)
def test_an_output_that_cannot_be_is_refused_before_anything_runs(tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text("")
    job = BatchJob(tmp_path / "in.jsonl", tmp_path / output)
    with pytest.raises(InputError, match=message):
        job.open(SimpleNamespace(model=tmp_path))


def test_a_line_may_be_a_conversation(tmp_path: Path, pipeline) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0].content }}!"})
    )
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    answers, _ = run_batch(
        tmp_path,
        pipeline,
        line("chat", None, url="/v1/chat/completions", body=body),
        line("plain", "b!", body={"prompt": "b!", "max_tokens": 1, "logprobs": 0}),
        vocab_size=2048,
    )
    chat, plain = (answer["response"]["body"] for answer in answers)
    assert (chat["object"], chat["id"]) == ("chat.completion", "chatcmpl-1")
    assert chat["choices"][0]["message"]["content"] == "!"
    assert (plain["object"], plain["choices"][0]["text"]) == ("text_completion", "!")
    assert plain["choices"][0]["logprobs"]["tokens"] == ["!"]

"""A batch file: OpenAI batch lines in, the same lines answered out, in the same order. `BatchJob` runs one.

A line that cannot be answered fails alone, with an `error` object in its place. The output grows as ``NAME.part`` and
gets its name when it is complete and on disk.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hetero_infer.serving.completion import Completion
from hetero_infer.serving.endpoint import ENDPOINTS, Endpoint
from hetero_infer.serving.engine_client import EngineClient, Pipeline, Totals
from hetero_infer.serving.progress import Progress
from hetero_infer.serving.request import Request, RequestError
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec import InputError, RunConfig
from hetero_infer.spec.files import writing

METHOD = "POST"
STOPPED_AND_RESUMABLE = 75
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class BatchLine:
    """One line of the input: a `request` to an `endpoint`, or the `error` that it has instead. `number` counts from
    1."""

    number: int
    custom_id: str | None
    request: Request | None
    endpoint: Endpoint | None = None
    error: RequestError | None = None

    def answer(self, completion: Completion | None, model: ServedModel) -> dict[str, Any]:
        name = f"batch_req_{self.number}"
        answer = {"id": name, "custom_id": self.custom_id, "response": None, "error": None}
        if completion is None:
            error = {"code": "invalid_request", "message": str(self.error), "param": self.error.field}
            return answer | {"error": error}
        body = self.endpoint.answer(completion, model, f"{self.endpoint.id_prefix}-{self.number}")
        return answer | {"response": {"status_code": 200, "request_id": name, "body": body}}


@dataclass(frozen=True)
class BatchSummary:
    """The seconds are those of the replica that was longest at it: they work at the same time."""

    requests: int
    failed: int
    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    replicas: tuple[Totals, ...]

    @classmethod
    def of(cls, requests: int, failed: int, replicas: tuple[Totals, ...]) -> "BatchSummary":
        return cls(
            requests,
            failed,
            prompt_tokens=sum(replica.prompt_tokens for replica in replicas),
            new_tokens=sum(replica.new_tokens for replica in replicas),
            prefill_s=max(replica.prefill_s for replica in replicas),
            decode_s=max(replica.decode_s for replica in replicas),
            replicas=replicas,
        )


def read_lines(content: bytes, model: ServedModel) -> Iterator[BatchLine]:
    """Every line that is not blank, good or bad."""
    seen: set[str] = set()
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield _read_line(number, line, model, seen)


def _read_line(number: int, line: bytes, model: ServedModel, seen: set[str]) -> BatchLine:
    custom_id = None
    try:
        entry = _entry(line)
        custom_id = _custom_id(entry, seen)
        for field, wanted in (("method", (METHOD,)), ("url", tuple(ENDPOINTS))):
            if entry.get(field) not in wanted:
                raise RequestError(f"{field} = {entry.get(field)!r}: only {' or '.join(wanted)} is served", field)
        endpoint = ENDPOINTS[entry["url"]]
        return BatchLine(number, custom_id, endpoint.parse(entry.get("body"), model), endpoint)
    except RequestError as error:
        return BatchLine(number, custom_id, None, error=RequestError(f"line {number}: {error}", error.field))


def _entry(line: bytes) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON ({error})") from error
    if not isinstance(entry, Mapping):
        raise RequestError("not a JSON object")
    return entry


def _custom_id(entry: Mapping[str, Any], seen: set[str]) -> str:
    custom_id = entry.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise RequestError("custom_id is missing: a string that is in no other line", "custom_id")
    if custom_id in seen:
        raise RequestError(f"custom_id {custom_id!r} stands in an earlier line, too", "custom_id")
    seen.add(custom_id)
    return custom_id


class BatchJob:
    """`summary` is there when the job is done."""

    exit_code_if_interrupted = STOPPED_AND_RESUMABLE

    def __init__(self, input_path: Path, output_path: Path) -> None:
        self.summary: BatchSummary | None = None
        self._input_path = input_path
        self._output_path = output_path
        self._part_path = output_path.with_name(output_path.name + ".part")

    def open(self, config: RunConfig) -> None:
        self._model_folder = config.model
        try:
            self._content = self._input_path.read_bytes()
        except OSError as error:
            raise InputError(f"batch input {self._input_path}: {error.strerror}") from error
        if self._input_path.resolve() in (self._output_path.resolve(), self._part_path.resolve()):
            raise InputError(f"batch output {self._output_path}: it would replace the input; name another file")
        if self._output_path.is_dir():
            raise InputError(f"batch output {self._output_path}: a folder; name a file")
        folder = self._output_path.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"batch output {self._output_path}: the folder {folder} is not there or not writable")

    async def run(self, pipelines: Sequence[Pipeline]) -> None:
        # In a thread: loading, or a long file, must not keep the supervisor from its heartbeats.
        model = await asyncio.to_thread(ServedModel.load, self._model_folder, pipelines[0].plan)
        lines = await asyncio.to_thread(lambda: list(read_lines(self._content, model)))
        engine = EngineClient(pipelines, model)
        generating = asyncio.create_task(engine.run())
        progress = Progress(len(lines))
        try:
            # What UTF-8 cannot hold, half a surrogate pair in a custom_id, stays the JSON escape it was.
            with writing(self._part_path):
                with self._part_path.open("w", encoding="utf-8", errors="backslashreplace") as part:
                    failed = await self._answer_all(lines, engine, model, progress, part)
            await engine.drain()
        finally:
            progress.close()
            generating.cancel()
        with writing(self._output_path):
            self._part_path.replace(self._output_path)
        self.summary = BatchSummary.of(len(lines), failed, engine.totals)

    async def _answer_all(
        self, lines: list[BatchLine], engine: EngineClient, model: ServedModel, progress: Progress, part: TextIO
    ) -> int:
        """Write the answers in input order; returns how many lines failed."""
        failed = 0
        async for line, completion in _answered_in_order(lines, engine):
            failed += completion is None
            part.write(json.dumps(line.answer(completion, model), ensure_ascii=False) + "\n")
            part.flush()
            progress.advance(len(completion.tokens) if completion else 0)
        os.fsync(part.fileno())
        return failed


async def _answered_in_order(
    lines: list[BatchLine], engine: EngineClient
) -> AsyncIterator[tuple[BatchLine, Completion | None]]:
    """Keeps the replicas supplied two batches ahead, and no more in memory than that."""
    window: deque[tuple[BatchLine, asyncio.Task[Completion] | None]] = deque()
    remaining = iter(lines)
    try:
        while True:
            while len(window) < BATCHES_AHEAD * engine.batch_size and (line := next(remaining, None)):
                window.append((line, asyncio.create_task(engine.complete(line.request)) if line.request else None))
            if not window:
                return
            line, answering = window.popleft()
            yield line, await answering if answering else None
    finally:
        for _, answering in window:
            if answering:
                answering.cancel()

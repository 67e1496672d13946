"""`EvaluationJob`: perplexity of a text over the running pipeline, as `hetero-infer evaluate` has it from one process.

Every window is a request that asks for the log-probabilities of its prompt. Replicas are evaluated each by itself:
they may have other bits.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from hetero_infer.serving.engine_client import EngineClient, Pipeline
from hetero_infer.serving.progress import Progress
from hetero_infer.serving.request import Request
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec import InputError, ModelSpec, RunConfig
from hetero_infer.spec.evaluation import Evaluation, Perplexity, TokenisedText, Window
from hetero_infer.spec.prose import read_prose
from hetero_infer.spec.sampling import Sampling


class EvaluationJob:
    """`found` is there when the job is done: one perplexity per replica. The text is the config's if none is given."""

    exit_code_if_interrupted = 1

    def __init__(
        self, text: Path | None = None, context_tokens: int | None = None, stride_tokens: int | None = None
    ) -> None:
        self.found: tuple[Perplexity, ...] = ()
        self.text = text
        self._context_tokens = context_tokens
        self._stride_tokens = stride_tokens

    def open(self, config: RunConfig) -> None:
        self._model_folder = config.model
        self.text = self.text or config.text
        self._content = read_prose(self.text)

    async def run(self, pipelines: Sequence[Pipeline]) -> None:
        # In a thread: loading, or a long text, must not keep the supervisor from its heartbeats.
        prepared = await asyncio.to_thread(lambda: [self._prepare(pipeline) for pipeline in pipelines])
        progress = Progress(sum(len(evaluation.windows) for _, evaluation in prepared), "window")
        try:
            replicas = zip(pipelines, prepared, strict=True)
            self.found = tuple(await asyncio.gather(*(_evaluate(one, *of_it, progress) for one, of_it in replicas)))
        finally:
            progress.close()

    def _prepare(self, pipeline: Pipeline) -> tuple[ServedModel, Evaluation]:
        model = ServedModel.load(self._model_folder, pipeline.plan)
        if model.tokenizer is None:
            raise InputError(
                f"model {self._model_folder}: no tokenizer there, so the text {self.text} can't be read with it"
            )
        tokens, ends = model.tokenizer.encode_with_ends(self._content)
        text = TokenisedText.of(
            self.text, self._content, tokens, ends, model=self._model_folder, vocab_size=model.vocab_size
        )
        most_tokens = min(model.prompt_tokens, ModelSpec.from_folder(self._model_folder).max_position_embeddings)
        return model, Evaluation.of(text, most_tokens, self._context_tokens, self._stride_tokens)


async def _evaluate(pipeline: Pipeline, model: ServedModel, evaluation: Evaluation, progress: Progress) -> Perplexity:
    """A batch at a time: the pipeline takes no more, and a long text would fill the memory."""
    engine = EngineClient([pipeline], model)
    generating = asyncio.create_task(engine.run())
    nats: list[list[float]] = []

    async def score(window: Window) -> list[float]:
        prompt = evaluation.text.tokens[window.start : window.stop]
        completion = await engine.complete(Request(prompt, 1, Sampling(prompt_logprobs=True)))
        progress.advance(len(prompt))
        return [-logprob for logprob in completion.prompt_logprobs[window.first_scored - window.start - 1 :]]

    try:
        for first in range(0, len(evaluation.windows), engine.batch_size):
            together = evaluation.windows[first : first + engine.batch_size]
            nats += await asyncio.gather(*map(score, together))
        await engine.drain()
    finally:
        generating.cancel()
    return evaluation.perplexity(nats)

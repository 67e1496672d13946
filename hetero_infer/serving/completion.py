"""`Completion`, and OpenAI's two shapes of it: of `/v1/completions` and of `/v1/chat/completions`.

Both also have `token_ids`, which OpenAI's do not.
"""

import time
from dataclasses import dataclass
from typing import Any

from hetero_infer.serving.served_model import ServedModel

TokenLogprobs = tuple[tuple[int, float], ...]  # the token's own, then those of the likeliest


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is "stop" after a stop token or a stop string, else "length".

    `text` ends before the stop string, `tokens` with the token that completed it. `text_offsets` say of each token
    where in `text` it begins; `logprobs` is None where nobody asked. `prompt_logprobs`, if asked for, are those of the
    prompt's tokens but the first. `fingerprint` is that of the plan that made it.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    finish_reason: str
    text: str = ""
    text_offsets: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[float, ...] = ()
    fingerprint: str = ""


def completion_json(completion: Completion, model: ServedModel, completion_id: str) -> dict[str, Any]:
    choice = {"text": completion.text, "logprobs": _logprobs(completion, model)}
    return _answer("text_completion", choice, completion, model, completion_id)


def chat_completion_json(completion: Completion, model: ServedModel, completion_id: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    choice = {"message": message, "logprobs": _chat_logprobs(completion, model)}
    return _answer("chat.completion", choice, completion, model, completion_id)


def _answer(
    kind: str, choice: dict[str, Any], completion: Completion, model: ServedModel, completion_id: str
) -> dict[str, Any]:
    usage = {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": len(completion.tokens),
        "total_tokens": completion.prompt_tokens + len(completion.tokens),
    }
    end = {"token_ids": list(completion.tokens), "finish_reason": completion.finish_reason}
    return {
        "id": completion_id,
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": completion.fingerprint,
        "choices": [{"index": 0} | choice | end],
        "usage": usage,
    }


def _logprobs(completion: Completion, model: ServedModel) -> dict[str, Any] | None:
    if completion.logprobs is None:
        return None
    return {
        "tokens": [model.name_of_token(token) for token in completion.tokens],
        "token_logprobs": [pairs[0][1] for pairs in completion.logprobs],
        "top_logprobs": [
            {model.name_of_token(token): logprob for token, logprob in pairs} for pairs in completion.logprobs
        ],
        "text_offset": list(completion.text_offsets),
    }


def _chat_logprobs(completion: Completion, model: ServedModel) -> dict[str, Any] | None:
    if completion.logprobs is None:
        return None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = model.text_of_token(token)
        return {
            "token": model.name_of_token(token),
            "logprob": logprob,
            "bytes": None if text is None else list(text.encode()),
        }

    content = [
        entry(*own) | {"top_logprobs": [entry(*pair) for pair in likeliest]} for own, *likeliest in completion.logprobs
    ]
    return {"content": content, "refusal": None}

"""`Request`, and how the body of an OpenAI completion or chat completion becomes one."""

import difflib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetero_infer.serving.served_model import ServedModel
from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import InputError
from hetero_infer.spec.sampling import MOST_LOGPROBS, RANGES, Sampling

DEFAULT_MAX_TOKENS = 16
MOST_COMPLETION_LOGPROBS = 5
MOST_STOP_STRINGS = 16
MOST_TOKENS = 2**31
# What the two bodies share; the last three are not OpenAI's, but vLLM's.
SAMPLING_FIELDS = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
SAMPLING_FIELDS += ("top_k", "min_p", "repetition_penalty")
SHARED_FIELDS = ("model", "max_tokens", "stop", "logprobs", *SAMPLING_FIELDS)
FIELDS = ("prompt", *SHARED_FIELDS)
CHAT_FIELDS = ("messages", "max_completion_tokens", "top_logprobs", *SHARED_FIELDS)
IGNORED = ("user",)
# Fields of the API that are not implemented: accepted with these values, which ask for nothing.
NEUTRAL = {"n": (1,), "stream": (False,), "stream_options": (), "logit_bias": ({},)}
COMPLETION_NEUTRAL = NEUTRAL | {"best_of": (1,), "echo": (False,), "suffix": ("",)}
CHAT_NEUTRAL = NEUTRAL | {"tools": ([],), "response_format": ({"type": "text"},)}


class RequestError(InputError):
    """A body that cannot be answered; `field` says where."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Request:
    """`stop` strings end the text and are not in it."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


def parse_request(body: object, model: ServedModel) -> Request:
    """A completions body, checked against what the model and the plan can do."""
    body = _known_fields(body, model, FIELDS, COMPLETION_NEUTRAL)
    prompt = _fitting(_prompt(body, model), model, "prompt")
    logprobs = _number(body, "logprobs", None, int, 0, MOST_COMPLETION_LOGPROBS)
    return _request(body, model, prompt, "max_tokens", DEFAULT_MAX_TOKENS, logprobs)


def parse_chat_request(body: object, model: ServedModel) -> Request:
    """A chat completions body. Without `max_tokens` the answer may be as long as the plan has room for."""
    body = _known_fields(body, model, CHAT_FIELDS, CHAT_NEUTRAL)
    prompt = _fitting(_conversation(body, model), model, "messages")
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return _request(body, model, prompt, limit, model.context_tokens - len(prompt), _chat_logprobs(body))


def _request(
    body: Mapping[str, Any],
    model: ServedModel,
    prompt: tuple[int, ...],
    limit: str,
    default_max_tokens: int,
    logprobs: int | None,
) -> Request:
    """`limit` names the field of the body that says how many tokens may come."""
    max_tokens = _number(body, limit, default_max_tokens, int, 1, MOST_TOKENS)
    if len(prompt) + max_tokens > model.context_tokens:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and {limit} is {max_tokens}: {len(prompt) + max_tokens} of the "
            f"{model.context_tokens} this plan has room for; shorten the prompt, lower {limit}, or plan with "
            "more prompt_tokens or new_tokens",
            limit,
        )
    return Request(prompt, max_tokens, _sampling(body, logprobs), _stop(body, model))


def _sampling(body: Mapping[str, Any], logprobs: int | None) -> Sampling:
    ranges = RANGES | {"temperature": (0, 2)}
    defaults = Sampling(seed=secrets.randbits(31))
    fields = {
        name: _number(body, name, getattr(defaults, name), type(getattr(defaults, name)), *ranges[name])
        for name in SAMPLING_FIELDS
    }
    return Sampling(**fields, logprobs=logprobs)


def _chat_logprobs(body: Mapping[str, Any]) -> int | None:
    wanted = body.get("logprobs") or False
    if not isinstance(wanted, bool):
        raise RequestError(f"logprobs = {wanted!r} must be true or false; top_logprobs says how many", "logprobs")
    count = _number(body, "top_logprobs", 0, int, 0, MOST_LOGPROBS)
    if count and not wanted:
        raise RequestError("top_logprobs needs logprobs = true", "top_logprobs")
    return count if wanted else None


def _stop(body: Mapping[str, Any], model: ServedModel) -> tuple[str, ...]:
    stop = body.get("stop") or []
    if isinstance(stop, str):
        stop = [stop]
    if not isinstance(stop, list) or len(stop) > MOST_STOP_STRINGS or not all(isinstance(s, str) and s for s in stop):
        raise RequestError(f"stop must be a string, or a list of up to {MOST_STOP_STRINGS} that are not empty", "stop")
    if stop and model.tokenizer is None:
        raise RequestError(f"{model.name} has no tokenizer: no text, and no stop strings in it", "stop")
    return tuple(stop)


def _known_fields(
    body: object, model: ServedModel, fields: Sequence[str], neutral: Mapping[str, tuple[Any, ...]]
) -> Mapping[str, Any]:
    """`body`, if everything it asks for is served."""
    if not isinstance(body, Mapping):
        raise RequestError("the body must be a JSON object")
    for field, value in body.items():
        if field in fields or field in IGNORED:
            continue
        if field not in neutral:
            nearest = difflib.get_close_matches(field, [*fields, *neutral], 1)
            way_out = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(fields)}"
            raise RequestError(f"the field {field} is not known; {way_out}", field)
        if value is not None and value not in neutral[field]:
            raise RequestError(f"{field} = {value!r} is not supported; leave {field} out", field)
    if body.get("model") not in (None, model.name):
        raise RequestError(f"model {body['model']!r} is not served here; {model.name!r} is", "model")
    return body


def _fitting(prompt: list[int], model: ServedModel, field: str) -> tuple[int, ...]:
    if not prompt:
        raise RequestError("the prompt is empty: it needs at least one token", field)
    for token in prompt:
        if not 0 <= token < model.vocab_size:
            raise RequestError(f"the prompt has the token id {token}; ids go from 0 to {model.vocab_size - 1}", field)
    if len(prompt) > model.prompt_tokens:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and this plan has room for {model.prompt_tokens}; shorten it, or "
            "plan with more prompt_tokens",
            field,
        )
    return tuple(prompt)


def _prompt(body: Mapping[str, Any], model: ServedModel) -> list[int]:
    prompt = body.get("prompt")
    if prompt is None:
        raise RequestError("prompt is missing: a string, or a list of token ids", "prompt")
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise RequestError(f"{model.name} has no tokenizer: give the prompt as a list of token ids", "prompt")
        return _encode(prompt, model.tokenizer, "prompt")
    if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
        raise RequestError("prompt must be one string or one list of token ids; send one request per prompt", "prompt")
    return prompt


def _conversation(body: Mapping[str, Any], model: ServedModel) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one, each with a role and a content", "messages")
    if model.tokenizer is None or not model.tokenizer.has_chat_template:
        raise RequestError(
            f"{model.name} has no chat template; send a prompt to /v1/completions, or add a chat_template.jinja to "
            "the model folder",
            "messages",
        )
    try:
        text = model.tokenizer.apply_chat_template([_message(message) for message in messages])
    except InputError as error:
        raise RequestError(str(error), "messages") from error
    return _encode(text, model.tokenizer, "messages", is_complete=True)


def _message(message: object) -> Mapping[str, Any]:
    """With its content as one text; OpenAI also takes a list of parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError("a message must be an object with a role, a string", "messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(map(_text_of_part, content))
    if not isinstance(content, str):
        raise RequestError("the content of a message must be a string, or a list of text parts", "messages")
    return {**message, "content": content}


def _text_of_part(part: object) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise RequestError('a part of a content must be {"type": "text", "text": "…"}', "messages")
    return part["text"]


def _encode(text: str, tokenizer: Tokenizer, field: str, is_complete: bool = False) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{field} is no text: {error.reason} at character {error.start}", field) from error
    return tokenizer.encode(text, is_complete)


def _number(body: Mapping[str, Any], field: str, default: Any, kind: type, low: float, high: float) -> Any:
    value = body.get(field)
    if value is None:
        return default
    kinds = (int, float) if kind is float else (int,)
    if type(value) not in kinds or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{field} = {value!r} must be {what} from {low} to {high}", field)
    return kind(value)

"""`Request` and `Completion`, and how an OpenAI completions body becomes one and is made of the other."""

import difflib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetero_infer.serving.served_model import ServedModel
from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import InputError

DEFAULT_MAX_TOKENS = 16
IGNORED = ("user",)
# Fields of the API that are not implemented: accepted with these values, which ask for nothing.
NEUTRAL = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "stream_options": (),
    "stop": ([],),
    "logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
FIELDS = ("model", "prompt", "max_tokens", "temperature", "top_p", "seed")


class RequestError(InputError):
    """A body that cannot be answered; `field` says where."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Request:
    """Temperature 0 is greedy, and then `top_p` and `seed` do nothing."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is "stop" after a stop token, else "length"."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    finish_reason: str

    def to_json(self, model: ServedModel, completion_id: str) -> dict[str, Any]:
        """OpenAI's shape, and `token_ids`, which it does not have."""
        choice = {
            "index": 0,
            "text": model.text_of(self.tokens),
            "token_ids": list(self.tokens),
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
        }
        return {
            "id": completion_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "choices": [choice],
            "usage": usage,
        }


def parse_request(body: object, model: ServedModel) -> Request:
    """A completions body, checked against what the model and the plan can do."""
    if not isinstance(body, Mapping):
        raise RequestError("the body must be a JSON object")
    _refuse_what_is_not_served(body)
    if body.get("model") not in (None, model.name):
        raise RequestError(f"model {body['model']!r} is not served here; {model.name!r} is", "model")
    prompt = _prompt(body, model)
    if len(prompt) > model.prompt_tokens:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and this plan has room for {model.prompt_tokens}; shorten it, or "
            "plan with more prompt_tokens",
            "prompt",
        )
    max_tokens = _number(body, "max_tokens", DEFAULT_MAX_TOKENS, int, 1, 2**31)
    if len(prompt) + max_tokens > model.context_tokens:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and max_tokens is {max_tokens}: {len(prompt) + max_tokens} of the "
            f"{model.context_tokens} this plan has room for; shorten the prompt, lower max_tokens, or plan with "
            "more prompt_tokens or new_tokens",
            "max_tokens",
        )
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 0.0, float, 0, 2),
        top_p=_number(body, "top_p", 1.0, float, 0, 1),
        seed=_number(body, "seed", secrets.randbits(31), int, -(2**63), 2**63 - 1),
    )


def _refuse_what_is_not_served(body: Mapping[str, Any]) -> None:
    for field, value in body.items():
        if field in FIELDS or field in IGNORED:
            continue
        if field not in NEUTRAL:
            nearest = difflib.get_close_matches(field, [*FIELDS, *NEUTRAL], 1)
            way_out = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(FIELDS)}"
            raise RequestError(f"the field {field} is not known; {way_out}", field)
        if value is not None and value not in NEUTRAL[field]:
            raise RequestError(f"{field} = {value!r} is not supported; leave {field} out", field)


def _prompt(body: Mapping[str, Any], model: ServedModel) -> tuple[int, ...]:
    prompt = body.get("prompt")
    if prompt is None:
        raise RequestError("prompt is missing: a string, or a list of token ids", "prompt")
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise RequestError(f"{model.name} has no tokenizer.json: give the prompt as a list of token ids", "prompt")
        prompt = _encode(prompt, model.tokenizer)
    if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
        raise RequestError("prompt must be one string or one list of token ids; send one request per prompt", "prompt")
    if not prompt:
        raise RequestError("prompt is empty: it needs at least one token", "prompt")
    for token in prompt:
        if not 0 <= token < model.vocab_size:
            raise RequestError(f"prompt has the token id {token}; ids go from 0 to {model.vocab_size - 1}", "prompt")
    return tuple(prompt)


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"prompt is no text: {error.reason} at character {error.start}", "prompt") from error
    return tokenizer.encode(text)


def _number(body: Mapping[str, Any], field: str, default: Any, kind: type, low: int, high: int) -> Any:
    value = body.get(field)
    if value is None:
        value = default
    kinds = (int, float) if kind is float else (int,)
    if type(value) not in kinds or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{field} = {value!r} must be {what} from {low} to {high}", field)
    return kind(value)

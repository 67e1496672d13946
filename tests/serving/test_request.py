"""An OpenAI completions body becomes a request, or an error that names the field."""

from pathlib import Path

import pytest

from hetero_infer.serving.request import Completion, RequestError, parse_request
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec.config import DEMO_MODEL


def test_the_defaults_are_sixteen_tokens_and_greedy(model: ServedModel) -> None:
    with pytest.raises(RequestError, match="max_tokens is 16"):
        parse_request({"prompt": [1]}, model)
    request = parse_request({"prompt": [1, 2], "max_tokens": 3}, model)
    assert (request.prompt, request.max_tokens, request.temperature, request.top_p) == ((1, 2), 3, 0.0, 1.0)


def test_a_request_may_fill_the_context_exactly(model: ServedModel) -> None:
    assert parse_request({"prompt": [1] * 8, "max_tokens": 8}, model)
    with pytest.raises(RequestError, match=r"17 of the 16 this plan has room for.*lower max_tokens"):
        parse_request({"prompt": [1] * 8, "max_tokens": 9}, model)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"n": 2}, "n", "n = 2 is not supported"),
        ({"stream": True}, "stream", "not supported"),
        ({"stop": ["."]}, "stop", "not supported"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"max_token": 3}, "max_token", "did you mean max_tokens?"),
        ({"model": "gpt-4"}, "model", "'tiny' is"),
        ({"prompt": []}, "prompt", "at least one"),
        ({"prompt": [100]}, "prompt", "from 0 to 99"),
        ({"prompt": ["a", "b"]}, "prompt", "one request per prompt"),
        ({"prompt": "text"}, "prompt", "no tokenizer.json"),
        ({"prompt": None}, "prompt", "missing"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"temperature": "hot"}, "temperature", "a number from 0 to 2"),
        ({"top_p": float("nan")}, "top_p", "from 0 to 1"),
        ({"seed": 1.5}, "seed", "whole number"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    model: ServedModel, body: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_request({"prompt": [1], "max_tokens": 2} | body, model)
    assert caught.value.field == field


def test_fields_that_ask_for_nothing_are_accepted(model: ServedModel) -> None:
    neutral = {"n": 1, "stream": False, "stop": None, "logprobs": None, "echo": False, "user": "me", "suffix": None}
    assert parse_request({"model": "tiny", "prompt": [1], "max_tokens": 2} | neutral, model)


def test_a_completion_has_openais_shape(model: ServedModel) -> None:
    answer = Completion(prompt_tokens=2, tokens=(5, 6), finish_reason="stop").to_json(model, "cmpl-1")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_text_goes_through_the_models_tokenizer_and_back() -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    model = ServedModel("demo", 2048, (0,), prompt_tokens=64, cache_tokens=64, tokenizer=tokenizer)
    request = parse_request({"prompt": "Once upon a time", "max_tokens": 2}, model)
    assert model.text_of(request.prompt) == "Once upon a time"
    with pytest.raises(RequestError, match="surrogates not allowed"):
        parse_request({"prompt": "\ud800"}, model)


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None

"""An OpenAI completions body, or a chat's, becomes a request, or an error that names the field."""

import pytest

from hetero_infer.serving.request import RequestError, parse_chat_request, parse_request
from hetero_infer.serving.served_model import ServedModel
from hetero_infer.spec.sampling import Sampling


def test_the_defaults_are_sixteen_tokens_and_greedy(model: ServedModel) -> None:
    with pytest.raises(RequestError, match="max_tokens is 16"):
        parse_request({"prompt": [1]}, model)
    request = parse_request({"prompt": [1, 2], "max_tokens": 3}, model)
    assert (request.prompt, request.max_tokens, request.stop) == ((1, 2), 3, ())
    assert request.sampling == Sampling(seed=request.sampling.seed)


def test_every_sampling_field_arrives(model: ServedModel) -> None:
    fields = {"temperature": 1, "top_p": 0.5, "seed": -7, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}
    fields |= {"presence_penalty": -2, "frequency_penalty": 0.5, "logprobs": 5}
    assert parse_request({"prompt": [1], "max_tokens": 2} | fields, model).sampling == Sampling(**fields)


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), ("a", ("a",)), ([], ()), (["a", "b c"], ("a", "b c"))])
def test_stop_is_a_string_or_a_list_of_them(stop: object, expected: tuple, speaking_model: ServedModel) -> None:
    assert parse_request({"prompt": [1], "stop": stop}, speaking_model).stop == expected


def test_a_request_may_fill_the_context_exactly(model: ServedModel) -> None:
    assert parse_request({"prompt": [1] * 8, "max_tokens": 8}, model)
    with pytest.raises(RequestError, match=r"17 of the 16 this plan has room for.*lower max_tokens"):
        parse_request({"prompt": [1] * 8, "max_tokens": 9}, model)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"n": 2}, "n", "n = 2 is not supported"),
        ({"stream": True}, "stream", "not supported"),
        ({"echo": True}, "echo", "not supported"),
        ({"stop": ["."]}, "stop", "no tokenizer"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"stop": ["a", ""]}, "stop", "not empty"),
        ({"stop": 3}, "stop", "must be a string"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"top_k": -2}, "top_k", "from -1"),
        ({"top_k": 1.5}, "top_k", "whole number"),
        ({"min_p": 1.01}, "min_p", "from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01"),
        ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"frequency_penalty": "1"}, "frequency_penalty", "a number"),
        ({"messages": []}, "messages", "not known"),
        ({"max_token": 3}, "max_token", "did you mean max_tokens?"),
        ({"model": "gpt-4"}, "model", "'tiny' is"),
        ({"prompt": []}, "prompt", "at least one"),
        ({"prompt": [100]}, "prompt", "from 0 to 99"),
        ({"prompt": ["a", "b"]}, "prompt", "one request per prompt"),
        ({"prompt": "text"}, "prompt", "no tokenizer"),
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


def test_a_prompt_that_is_no_text_is_refused(speaking_model: ServedModel) -> None:
    with pytest.raises(RequestError, match="surrogates not allowed"):
        parse_request({"prompt": "\ud800"}, speaking_model)


# Chat.

HELLO = {"role": "user", "content": "Hello"}


def test_a_conversation_goes_through_the_template_which_brings_its_own_bos(speaking_model: ServedModel) -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "good"}]
    messages = [{"role": "system", "content": parts}, HELLO]
    request = parse_chat_request({"messages": messages}, speaking_model)
    text = speaking_model.tokenizer.decode(request.prompt, skip_special_tokens=False)
    assert text == "<|endoftext|>system: Be good\nuser: Hello\nassistant:"
    assert request.prompt.count(0) == 1  # <|endoftext|>
    assert request.max_tokens == speaking_model.context_tokens - len(request.prompt)
    assert request.sampling == Sampling(seed=request.sampling.seed)


def test_a_chat_has_fields_of_its_own(speaking_model: ServedModel) -> None:
    fields = {"max_completion_tokens": 5, "logprobs": True, "top_logprobs": 20, "stop": ["a"], "top_k": 2}
    request = parse_chat_request({"messages": [HELLO]} | fields, speaking_model)
    assert (request.max_tokens, request.stop) == (5, ("a",))
    assert (request.sampling.logprobs, request.sampling.top_k) == (20, 2)
    assert parse_chat_request({"messages": [HELLO], "logprobs": True}, speaking_model).sampling.logprobs == 0


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["Hello"]}, "messages", "must be an object with a role"),
        ({"messages": [{"role": "user"}]}, "messages", "content of a message must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "a part of a content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "no form for .*who is a tool"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogates not allowed"),
        ({"messages": [{"role": "user", "content": "word " * 100}]}, "messages", "has room for 64"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"max_completion_tokens": 500}, "max_completion_tokens", "lower max_completion_tokens"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"prompt": "x"}, "prompt", "not known"),
    ],
)
def test_what_a_chat_cannot_be_is_refused_by_name(
    speaking_model: ServedModel, body: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_chat_request({"messages": [HELLO]} | body, speaking_model)
    assert caught.value.field == field

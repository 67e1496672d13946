"""A completion is told in OpenAI's shapes."""

from hetero_infer.serving.completion import Completion, chat_completion_json, completion_json
from hetero_infer.serving.served_model import ServedModel


def completion_of(model: ServedModel, text: str) -> Completion:
    tokens = tuple(model.tokenizer.encode(text))
    logprobs = tuple(((token, -1.5), (token, -1.5), (0, -2.0)) for token in tokens)
    return Completion(3, tokens, "stop", text, tuple(range(len(tokens))), logprobs)


def test_a_completion_has_openais_shape(model: ServedModel) -> None:
    answer = completion_json(Completion(2, (5, 6), "stop"), model, "cmpl-1")
    assert (answer["object"], answer["id"], answer["model"]) == ("text_completion", "cmpl-1", "tiny")
    assert answer["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "token_ids": [5, 6], "finish_reason": "stop"}
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_logprobs_are_four_lists_of_one_length(speaking_model: ServedModel) -> None:
    completion = completion_of(speaking_model, " the end")
    logprobs = completion_json(completion, speaking_model, "")["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == " the end"
    count = len(completion.tokens)
    assert logprobs["token_logprobs"] == [-1.5] * count
    assert logprobs["text_offset"] == list(range(count))
    assert logprobs["top_logprobs"] == [{token: -1.5, "<|endoftext|>": -2.0} for token in logprobs["tokens"]]


def test_a_chats_logprobs_are_one_list_with_bytes(speaking_model: ServedModel) -> None:
    answer = chat_completion_json(completion_of(speaking_model, " the end"), speaking_model, "chatcmpl-1")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": " the end", "refusal": None}
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]) == b" the end"
    assert content[0]["top_logprobs"][0] == {"token": content[0]["token"], "logprob": -1.5, "bytes": list(b" the")}


def test_part_of_a_character_is_named_by_its_id(speaking_model: ServedModel) -> None:
    completion = completion_of(speaking_model, "é"[:1] + "\U0001f600")
    tokens = completion_json(completion, speaking_model, "")["choices"][0]["logprobs"]["tokens"]
    assert tokens == [speaking_model.name_of_token(token) for token in completion.tokens]
    assert f"token_id:{completion.tokens[-1]}" == tokens[-1]
    content = chat_completion_json(completion, speaking_model, "")["choices"][0]["logprobs"]["content"]
    assert content[-1]["bytes"] is None

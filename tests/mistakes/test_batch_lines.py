"""A bad line of a batch file fails alone, and its message says which line, which field, and what is wrong with it."""

import json

import pytest

from hetero_infer.serving.batch_file import read_lines
from hetero_infer.serving.served_model import ServedModel

MODEL = ServedModel("tiny", vocab_size=100, stop_ids=(0,), prompt_tokens=15, cache_tokens=15)
GOOD = {"custom_id": "good", "method": "POST", "url": "/v1/completions", "body": {"prompt": [1], "max_tokens": 2}}


def line(**fields: object) -> str:
    """A good line but for these fields of it; None leaves a field out."""
    entry = GOOD | {"custom_id": "bad"} | fields
    return json.dumps({name: value for name, value in entry.items() if value is not None})


def body(**fields: object) -> str:
    return line(body=GOOD["body"] | fields)


BAD_LINES = [
    ("{", None, "not JSON"),
    ("custom_id: bad", None, "not JSON"),
    (line()[:-1], None, "not JSON"),
    (line() + ",", None, "not JSON (Extra data"),
    (b"\xff\xfe", None, "not JSON"),
    ("[" * 50_000, None, "not JSON (maximum recursion"),
    ("9" * 5000, None, "not JSON (Exceeds the limit"),
    ("[1]", None, "not a JSON object"),
    ("null", None, "not a JSON object"),
    ('"line"', None, "not a JSON object"),
    (line(custom_id=None), "custom_id", "custom_id is missing"),
    (line(custom_id=""), "custom_id", "custom_id is missing"),
    (line(custom_id=7), "custom_id", "custom_id is missing"),
    (line(custom_id="good"), "custom_id", "custom_id 'good' stands in an earlier line"),
    (line(method="GET"), "method", "method = 'GET': only POST is served"),
    (line(method=None), "method", "method = None: only POST is served"),
    (line(url="/v1/embeddings"), "url", "url = '/v1/embeddings': only /v1/completions or"),
    (line(body=None), None, "the body must be a JSON object"),
    (line(body="prompt"), None, "the body must be a JSON object"),
    (line(body={}), "prompt", "prompt is missing"),
    (body(prompt=7), "prompt", "prompt must be one string or one list of token ids"),
    (body(prompt=[[1], [2]]), "prompt", "prompt must be one string or one list of token ids"),
    (body(prompt=[True]), "prompt", "prompt must be one string or one list of token ids"),
    (body(prompt=[]), "prompt", "prompt is empty"),
    (body(prompt=[-1]), "prompt", "prompt has the token id -1; ids go from 0 to 99"),
    (body(prompt=[1, 100]), "prompt", "prompt has the token id 100"),
    (body(prompt="She was"), "prompt", "tiny has no tokenizer: give the prompt"),
    (body(prompt=[1] * 16), "prompt", "the prompt has 16 tokens and this plan has room for 15"),
    (body(prompt=[1] * 10, max_tokens=7), "max_tokens", "17 of the 16 this plan has room for"),
    (body(max_tokens=0), "max_tokens", "max_tokens = 0 must be a whole number from 1"),
    (body(max_tokens=2.5), "max_tokens", "max_tokens = 2.5 must be a whole number"),
    (body(max_tokens="2"), "max_tokens", "max_tokens = '2' must be a whole number"),
    (body(max_tokens=10**30), "max_tokens", "must be a whole number from 1"),
    (body(temperature=-1), "temperature", "temperature = -1 must be a number from 0 to 2"),
    (body(temperature=float("nan")), "temperature", "temperature = nan must be a number"),
    (body(top_p=float("inf")), "top_p", "top_p = inf must be a number from 0 to 1"),
    (body(seed=2**64), "seed", "must be a whole number from -9223372036854775808"),
    (body(model="gpt-4"), "model", "model 'gpt-4' is not served here; 'tiny' is"),
    (body(max_token=3), "max_token", "the field max_token is not known; did you mean max_tokens?"),
    (body(zebra=3), "zebra", "the field zebra is not known; known: "),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("bad", "field", "says"), BAD_LINES, ids=[says for _, _, says in BAD_LINES])
def test_a_bad_line_fails_alone(bad: str | bytes, field: str | None, says: str) -> None:
    lines = [json.dumps(GOOD), bad, "", json.dumps(GOOD | {"custom_id": "better"})]
    content = b"\n".join(entry.encode() if isinstance(entry, str) else entry for entry in lines)
    first, broken, last = read_lines(content, MODEL)
    assert [first.request is None, broken.request is None, last.request is None] == [False, True, False]
    answer = broken.answer(None, MODEL)
    assert answer["response"] is None and answer["error"]["param"] == field
    message = answer["error"]["message"]
    assert message.startswith("line 2: ") and says in message and "\n" not in message

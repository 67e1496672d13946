"""Text grows by whole characters, is the text of all tokens in the end, and ends before a stop string."""

import random
from pathlib import Path

import pytest

from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.serving.transcript import Transcript
from hetero_infer.spec.config import DEMO_MODEL
from tests.serving.test_tokenizer import sentencepiece_folder, vocabulary_folder  # noqa: F401 (fixtures)

TEXT = "Naïve 😀😀 text,  with  spaces…\n and 日本語 ends."


@pytest.fixture(scope="module", params=["demo", "sentencepiece_folder", "vocabulary_folder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = DEMO_MODEL if request.param == "demo" else request.getfixturevalue(request.param)
    return Tokenizer.from_folder(folder)


def texts_of(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> list[str]:
    """After each token, and after the end."""
    transcript, texts = Transcript(tokenizer, prompt), []
    for token in tokens:
        transcript.add(token)
        texts.append(transcript.text)
    transcript.finish()
    return [*texts, transcript.text]


def test_wherever_a_prompt_ends_its_continuation_is_the_rest_of_the_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    for cut in range(2, len(tokens)):
        before = tokenizer.decode(tokens[:cut])
        if not before.endswith("\ufffd"):
            assert before + texts_of(tokenizer, tokens[:cut], tokens[cut:])[-1] == TEXT


def test_no_character_is_told_before_it_is_complete(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    texts = texts_of(tokenizer, tokens[:2], tokens[2:])
    assert any(texts.count(text) > 2 for text in texts)  # an emoji takes several tokens
    assert all(TEXT.endswith(texts[-1]) and texts[-1].startswith(text) for text in texts)


def test_any_tokens_at_all_make_the_text_that_they_make_together(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    start = tokenizer.encode("Once upon")
    for _ in range(50):
        tokens = [rng.randrange(3, 600) for _ in range(30)]
        whole = tokenizer.decode(start + tokens)
        texts = texts_of(tokenizer, start, tokens)
        assert tokenizer.decode(start) + texts[-1] == whole
        assert all(texts[-1].startswith(text) for text in texts)


def test_an_incomplete_character_is_told_as_such_at_the_end() -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    *most, _ = tokenizer.encode("a😀")
    texts = texts_of(tokenizer, tokenizer.encode("x"), most)
    assert texts[-2] == "a" and texts[-1] == "a\ufffd"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("sp",), "Naïve 😀😀 text,  with  "),
        (("xt,  wi", "never"), "Naïve 😀😀 te"),
        (("😀",), "Naïve "),
        (("spaces", "with", " with"), "Naïve 😀😀 text, "),  # the first to begin
        (("N",), ""),
        ((TEXT + "!",), TEXT),
    ],
)
def test_a_stop_string_ends_the_text_wherever_tokens_part(
    tokenizer: Tokenizer, stop: tuple[str, ...], text: str
) -> None:
    prompt, *tokens = [tokenizer.encode("\n")], *tokenizer.encode(TEXT, is_complete=True)
    transcript = Transcript(tokenizer, prompt[0], stop)
    for token in tokens:
        transcript.add(token)
        if transcript.is_stopped:
            break
    transcript.finish()
    assert transcript.text.lstrip(" ") == text  # sentencepiece begins a text with a space
    assert transcript.is_stopped == (text != TEXT)


def test_offsets_say_where_each_token_begins() -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    tokens = tokenizer.encode(" the 😀 end")
    transcript = Transcript(tokenizer, (5,), (" end",))
    for token in tokens:
        transcript.add(token)
    assert transcript.text == " the 😀" and transcript.tokens == tokens
    offsets = transcript.offsets
    assert offsets[0] == 0 and list(offsets) == sorted(offsets) and offsets[-1] <= len(" the 😀")
    assert offsets.count(5) > 1  # tokens of one character begin where it does


def test_without_tokenizer_there_is_no_text() -> None:
    transcript = Transcript(None, (1, 2))
    transcript.add(3)
    transcript.finish()
    assert (transcript.text, transcript.tokens, transcript.offsets) == ("", [3], (0,))

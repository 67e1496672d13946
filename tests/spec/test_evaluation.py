"""Windows over a text, and what their losses make of it."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_infer.spec import InputError
from hetero_infer.spec.evaluation import Evaluation, TokenisedText

PATH = Path("text.txt")


def text_of(num_tokens: int) -> TokenisedText:
    """A byte is a token."""
    return tokenised("a" * num_tokens, range(1, num_tokens + 1))


def tokenised(text: str, ends: range | list[int] | None, num_tokens: int | None = None) -> TokenisedText:
    tokens = [0] * (len(ends) if num_tokens is None else num_tokens)
    return TokenisedText.of(PATH, text, tokens, ends, model=Path("model"), vocab_size=1)


@given(st.data())
def test_every_token_is_scored_once_with_context_less_stride_before_it(data: st.DataObject) -> None:
    num_tokens, context = data.draw(st.integers(2, 60)), data.draw(st.integers(2, 70))
    stride = data.draw(st.integers(1, context))
    windows = Evaluation.of(text_of(num_tokens), 100, context, stride).windows
    scored = [token for window in windows for token in range(window.first_scored, window.stop)]
    given_tokens = {0} if stride < context else set(range(0, num_tokens, context))
    assert scored == [token for token in range(num_tokens) if token not in given_tokens]
    for window in windows:
        assert window.start % stride == 0 and 0 < window.stop - window.start <= context
        assert window.start == 0 or window.first_scored - window.start >= max(1, context - stride)


def test_what_is_not_said_is_the_largest_context_and_no_overlap() -> None:
    assert (Evaluation.of(text_of(9), 2048, None, None).context_tokens) == 512
    asked = Evaluation.of(text_of(9), 20, None, None)
    assert (asked.context_tokens, asked.stride_tokens) == (20, 20)
    assert len(asked.windows) == 1  # as long as the text is


@pytest.mark.parametrize(
    ("context", "stride", "says"),
    [
        (1, None, "a context of 1 tokens: it must be from 2 to 20"),
        (21, None, "a context of 21 tokens: it must be from 2 to 20"),
        (10, 0, "a stride of 0 tokens: it must be from 1 to 10, the context"),
        (10, 11, "a stride of 11 tokens: it must be from 1 to 10, the context"),
    ],
)
def test_windows_that_cannot_be_are_refused(context: int, stride: int | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Evaluation.of(text_of(9), 20, context, stride)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_text_in_which_nothing_is_predicted_is_refused(num_tokens: int) -> None:
    with pytest.raises(InputError, match=f"it has {num_tokens} tokens; perplexity needs at least 2"):
        Evaluation.of(text_of(num_tokens), 20, None, None)


def test_bytes_are_those_of_scored_tokens() -> None:
    """Of ``naïve ☃``: the token of the two bytes of ï, and three that are parts of the snowman."""
    text = tokenised("naïve ☃", [2, 3, 6, 7, 7, 7])
    assert text.ends == (2, 4, 7, 8, 9, 10)
    whole = Evaluation.of(text, 20, 6, None).perplexity([[1.0] * 5])
    assert (whole.scored_tokens, whole.scored_bytes) == (5, 8)
    assert whole.bits_per_byte == pytest.approx(5 / math.log(2) / 8)
    cut = Evaluation.of(text, 20, 3, None).perplexity([[1.0, 2.0], [3.0, 4.0]])
    assert (cut.nats_per_token, cut.scored_bytes) == (2.5, 5 + 2)


def test_where_tokens_do_not_tell_their_bytes_each_has_its_share() -> None:
    assert tokenised("naïve", None, 3).ends == (2, 4, 6)
    assert tokenised("naïve", [0, 0, 0]).ends == (2, 4, 6)


def test_a_probability_that_is_no_number_is_told_with_its_place() -> None:
    asked = Evaluation.of(text_of(6), 20, 3, 3)
    with pytest.raises(InputError, match="for its tokens 3 to 5 the model gives probabilities that are no numbers"):
        asked.perplexity([[1.0, 1.0], [1.0, math.nan]])


def test_a_loss_that_no_float_can_raise_to_a_power_is_an_infinite_perplexity() -> None:
    assert Evaluation.of(text_of(2), 20, None, None).perplexity([[1e4]]).perplexity == math.inf

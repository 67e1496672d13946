"""A table's fields are all there, known and of their types, or the first that is not is named with its place."""

import pytest

from hetero_infer.spec import InputError, Workload
from hetero_infer.spec.fields import kinds_of, nearest, read_fields, read_some_fields, read_value

KINDS = {"count": int, "share": float}


def test_fields_are_returned_as_they_stand() -> None:
    assert read_fields({"count": 3, "share": 1}, KINDS, "here", {"name": str}) == {"count": 3, "share": 1}
    assert read_fields({"count": 3, "share": 0.5, "name": None}, KINDS, "here", {"name": str}).get("name") is None
    assert read_some_fields({"count": 3, "share": 0.5, "more": []}, KINDS, "here") == {"count": 3, "share": 0.5}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "here = [] is not a table of keys"),
        ({"count": 3}, "here: share is missing"),
        ({"count": 3, "share": 1, "shares": 2}, "here: shares is not known; did you mean share?"),
        ({"count": 3, "share": 1, "zebra": 2}, "here: zebra is not known; known: count, name, share"),
        ({"count": True, "share": 1}, "here: count = True is not a whole number"),
        ({"count": 3, "share": "1"}, "here: share = '1' is not a number"),
        ({"count": 3, "share": float("nan")}, "here: share = nan is not a finite number"),
        ({"count": 3, "share": 1, "name": 7}, "here: name = 7 is not a string"),
    ],
)
def test_the_first_that_is_wrong_is_named(content: object, says: str) -> None:
    with pytest.raises(InputError) as error:
        read_fields(content, KINDS, "here", {"name": str})
    assert str(error.value) == says


def test_a_value_is_shown_shortened() -> None:
    with pytest.raises(InputError) as error:
        read_value(["a long entry"] * 1000, dict, "here")
    assert len(str(error.value)) < 200


def test_the_fields_of_a_dataclass_are_known_by_their_types() -> None:
    assert kinds_of(Workload) == {"batch_size": int, "prompt_tokens": int, "new_tokens": int}


def test_the_nearest_word_is_suggested() -> None:
    assert nearest("batchsize", ["batch_size", "other"]) == "; did you mean batch_size?"

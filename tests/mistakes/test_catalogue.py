"""docs/errors.md has every message that a user can meet, and none that there is no more."""

import re

from tests.mistakes import catalogue


def test_every_message_is_explained() -> None:
    missing = [f"{place}: {template}" for template, place in catalogue.missing().items()]
    assert not missing, "not in docs/errors.md:\n" + "\n".join(missing)


def test_no_explanation_is_left_over() -> None:
    assert not catalogue.left_over(), "only in docs/errors.md:\n" + "\n".join(sorted(catalogue.left_over()))


def test_no_message_is_explained_twice() -> None:
    rows = re.findall(r"^\| `(.+?)` \|", catalogue.PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows)) >= 180


def test_messages_are_found_wherever_they_are_made() -> None:
    found = catalogue.messages()
    assert "config …: not TOML (…)" in found  # raised
    assert "shard …: damaged (…); delete it and quantise again" in found  # made by a function
    assert "… has hetero-infer …, rank 0 has …; install the same on every host" in found  # by way of a name
    assert (
        "stage … (… on …) needs … and has …, it lacks …; give it fewer bits or fewer layers, or lower batch_size"
        in found
    )
    assert "interrupted" in found

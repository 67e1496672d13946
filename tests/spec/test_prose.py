"""Texts in lines of JSON. Windows and tokenizers are tested with calibration."""

from pathlib import Path

import pytest

from hetero_infer.spec import InputError
from hetero_infer.spec.prose import read_prose


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_each_line_is_a_text(tmp_path: Path) -> None:
    lines = '{"text": "One.\\u2028Still one."}\n\n  \n{"id": 7, "text": "Two\\n"}\r\n{"text": ""}'
    assert read_prose(written(tmp_path / "text.jsonl", lines)) == "One.\u2028Still one.\n\nTwo\n\n\n"


def test_a_text_file_is_taken_as_it_is(tmp_path: Path) -> None:
    content = '{"text": "One."}\n{'
    assert read_prose(written(tmp_path / "text.txt", content)) == content


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "It was a dark night.",
            'line 2: not JSON (Expecting value: line 1 column 1 (char 0)); each line is like {"te',
        ),
        ('{"text": "cut of', "line 2: not JSON (Unterminated string"),
        ("[" * 100_000, "line 2: not JSON ("),
        ('{"content": "One."}', "line 2: text is missing"),
        ('{"text": ["One."]}', "line 2: text = ['One.'] is not a string"),
        ('["text"]', "line 2 = ['text'] is not a table of keys"),
        ('{"text": "\\ud83d"}', "line 2: half of a surrogate pair is no character"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "text.jsonl", f'{{"text": "One."}}\n{line}\n')
    with pytest.raises(InputError) as error:
        read_prose(path)
    assert says in str(error.value) and str(path) in str(error.value)

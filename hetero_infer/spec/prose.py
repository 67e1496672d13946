"""The text of a text file, or of a JSONL file, as calibration and evaluation read it.

A file whose name ends in ``.jsonl`` has a text in each line, ``{"text": "…"}``, other keys beside it being of no
interest; a blank line stands between them, as between the parts of a text file.
"""

import json
from pathlib import Path

from hetero_infer.spec.errors import InputError
from hetero_infer.spec.fields import read_some_fields
from hetero_infer.spec.files import read_text


def read_prose(path: Path) -> str:
    """What a text file or the lines of a JSONL file say."""
    content = read_text(path, "text")
    if path.suffix != ".jsonl":
        return content
    lines = enumerate(content.split("\n"), 1)  # splitlines() would also cut within a JSON string
    return "\n\n".join(_text_of(line, f"text {path}, line {number}") for number, line in lines if line.strip())


def _text_of(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where}: not JSON ({error}); each line is like {{"text": "…"}}') from error
    text = str(read_some_fields(content, {"text": str}, where)["text"])
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{where}: half of a surrogate pair is no character; take the \\ud… out")
    return text

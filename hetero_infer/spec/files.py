"""Text and bytes on disk that are either whole or not there."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hetero_infer.spec.errors import HeteroInferError, InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a folder that is read-only or a file: one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise HeteroInferError(
            f"{path}: cannot be written ({error.strerror or error}); make room there, or name another place with -o or "
            "in the config"
        ) from error


def read_text(path: Path, what: str) -> str:
    """The file's text, or an `InputError` that names `what` it should have been."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: not a text file (byte {error.start} is not UTF-8)") from error


def read_json(path: Path, what: str, file_format: int) -> dict[str, Any]:
    """A JSON object that carries the `format` number this version reads."""
    text = read_text(path, what)
    if not text.strip():
        raise InputError(f"{what} {path}: it is empty; delete it, or bring back what was in it")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path}: not JSON ({error}); mend it, or delete it and have it made again") from error
    if not isinstance(content, dict):
        raise InputError(f"{what} {path}: expected a JSON object")
    if content.get("format") != file_format or isinstance(content["format"], bool):
        raise InputError(f"{what} {path}: format {content.get('format')!r}, this version reads format {file_format}")
    return content


def digest_of(*parts: str | bytes | Mapping[str, Any]) -> str:
    """A short, stable name for everything in `parts`: 16 hex digits of SHA-256."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Mapping):
            part = json.dumps(part, sort_keys=True)
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]

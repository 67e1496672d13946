"""`LinkTable`: the measured links between hosts, as ``links.csv``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetero_infer.spec.cluster import Link
from hetero_infer.spec.csv_file import read_csv, write_csv
from hetero_infer.spec.errors import InputError

COLUMNS = {"from": str, "to": str, "alpha_s": float, "bytes_per_s": float}


@dataclass(frozen=True)
class LinkTable:
    """`links[from_host, to_host]`, as the hostfile names them; from a host to itself: between two of its slots."""

    links: Mapping[tuple[str, str], Link]
    header: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        rows = (
            {"from": source, "to": target, "alpha_s": f"{link.alpha_s:.6e}", "bytes_per_s": f"{link.bytes_per_s:.6e}"}
            for (source, target), link in self.links.items()
        )
        write_csv(path, self.header, COLUMNS, rows)

    @classmethod
    def load(cls, path: Path) -> "LinkTable":
        header, rows = read_csv(path, "links", COLUMNS, _row)
        links = dict(rows)
        if len(links) < len(rows):
            twice = next(pair for number, (pair, _) in enumerate(rows) if pair in dict(rows[:number]))
            raise InputError(f"links {path}: {twice[0]} to {twice[1]} stands there twice")
        return cls(links, header)

    @classmethod
    def load_if_there(cls, path: Path) -> "LinkTable":
        return cls.load(path) if path.exists() else cls({})

    def with_measured(self, measured: "LinkTable") -> "LinkTable":
        """With the links of `measured` in place of those of the same hosts."""
        kept = {
            key: value
            for key, value in self.header.items()
            if not any(key.startswith(f"{pair_name(pair)}.") for pair in measured.links)
        }
        return LinkTable({**self.links, **measured.links}, {**kept, **measured.header})


def pair_name(pair: tuple[str, str]) -> str:
    """In a header."""
    return " to ".join(pair)


def _row(entry: Mapping[str, Any]) -> tuple[tuple[str, str], Link]:
    pair = entry["from"], entry["to"]
    if not all(pair):
        raise InputError("a row reads from,to,alpha_s,bytes_per_s")
    return pair, Link(entry["alpha_s"], entry["bytes_per_s"])

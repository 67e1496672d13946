"""The HTML that the page is put together from. Text comes in as it is, and is escaped here."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hetero_infer import __version__

STYLE = Path(__file__).with_name("style.css")
Table = Sequence[Sequence[str]]  # the first row is the head

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Made by hetero-infer {version}. Nothing on this page comes from the network.</footer>
</body>
</html>
"""


def document(title: str, parts: Sequence[str]) -> str:
    style = STYLE.read_text(encoding="utf-8")
    return _DOCUMENT.format(title=escape(title), style=style, body="\n".join(parts), version=escape(__version__))


def section(title: str, says: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{paragraphs([says])}{content}</section>"


def paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts if text)


def table(rows: Table) -> str:
    head, *body = rows
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """What it is, the figure in large, and what is to be said of it."""
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd><strong>{escape(figure)}</strong><small>{escape(more)}</small></dd></div>"
        for what, figure, more in entries
    )
    return f'<dl class="tiles">{cells}</dl>'


def sentences(facts: Sequence[tuple[str, str]]) -> str:
    """Each beside what it is about, which is said once for those that follow each other."""
    before = ["", *(about for about, _ in facts)]
    items = "".join(
        f"<dt>{'' if about == told else escape(about)}</dt><dd>{escape(says)}</dd>"
        for told, (about, says) in zip(before, facts, strict=False)
    )
    return f"<dl>{items}</dl>"

"""Every message that `hetero_infer/` can give, and what docs/errors.md has of them.

A message is told by its template: the f-string with `…` in place of what is filled in. In docs/errors.md an entry is
the first cell of a table's row, between backticks.

    python -m tests.mistakes.catalogue          # what is missing there, as rows to fill in, and what is left over
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import hetero_infer

PACKAGE = Path(hetero_infer.__file__).parent
PAGE = PACKAGE.parent / "docs" / "errors.md"
ERRORS = {"HeteroInferError", "InputError", "InfeasibleError", "RequestError", "PipelineLost"}
TOLD = {
    "Ending": 1,
    "WorkerEnd": 0,
    "_end": 0,
    "_lose": 0,
    "say": 0,
    "refusal": 1,
    "refuse_unless": 2,
}  # which argument is for people
NAMES = ("_name", "missing_mib")  # of these: parts of messages
SENTENCES = ("planner/check.py", "planner/diagnosis.py")  # their functions return messages, or lists of them
PLACE = "…"


def messages() -> dict[str, str]:
    """Template of each message, and the place it first stands at."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in _told_in(function, file in SENTENCES and function.name not in NAMES):
                    for template in _templates(node, function):
                        if re.search(r"[a-z]{2}", template):
                            found.setdefault(template, f"{file}:{node.lineno}")
    return found


def entries() -> set[str]:
    """The templates that the page explains."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(), re.MULTILINE)
    return {row.replace("\\|", "|") for row in rows}


def missing() -> dict[str, str]:
    known = entries()
    return {template: place for template, place in messages().items() if template not in known}


def left_over() -> set[str]:
    return entries() - messages().keys()


def _told_in(function: ast.AST, returns_sentences: bool) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            position = 0 if name in ERRORS or (returns_sentences and name == "append") else TOLD.get(name)
            if position is not None and len(node.args) > position:
                yield node.args[position]
        elif returns_sentences and isinstance(node, ast.Return) and node.value:
            parts = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            yield from (part.elt if isinstance(part, ast.ListComp) else part for part in parts)


def _templates(node: ast.expr, function: ast.AST) -> list[str]:
    """Of a string; of a name, those that the function gives it."""
    if isinstance(node, ast.Name):
        given = [
            n.value
            for n in ast.walk(function)
            if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in n.targets)
        ]
        return [
            template for value in given if not isinstance(value, ast.Name) for template in _templates(value, function)
        ]
    if isinstance(node, ast.IfExp):
        return [*_templates(node.body, function), *_templates(node.orelse, function)]
    return [re.sub(f"{PLACE}+", PLACE, _template(node).replace("\n", " "))]


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    return PLACE


def main() -> None:
    for template, place in missing().items():
        print(f"missing, {place}:\n| `{template.replace('|', chr(92) + '|')}` | ? |")
    for template in sorted(left_over()):
        print(f"left over in {PAGE.name}: {template}")


if __name__ == "__main__":
    main()

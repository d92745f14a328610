"""Which records a figure of an executed notebook was drawn from: followed back through its cells, of which none is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthprune_study import provenance

SCORED = {"validation_scores": "validation", "test_scores": "test"}  # what the bench scores -> the folder with a record a model


@dataclass(frozen=True)
class _Statement:
    """What a statement gives to which names, and what it takes that from."""

    binds: frozenset[str]
    anew: bool  # what the names held before is gone
    uses: frozenset[str]
    line: int
    records: tuple[
        tuple[str, str], ...
    ]  # (notebook, pattern of names) that it measures or reads; empty: it works something out


def records_of(path: Path, figure: str, parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """(notebook, pattern) of the records behind `bench.show(figure, ...)`; none where the notebook shows no such figure.

    path: the notebook, named as its records' folder. A pattern is a regular expression for whole names; it says as much of a name as the
    cells do, so that it may find more than was drawn. Raises StudyError for what is no notebook.
    """
    cells = _Cells(path.stem, parameters)
    tree = ast.parse(provenance.notebook_code(path))
    statements = list(cells.statements(tree.body))
    shown = [call for call in _calls(tree, "show") if re.fullmatch(cells.name_of(call), figure)]
    saved: dict[str, list[tuple[str, str]]] = {}
    for call in _calls(tree, "save"):
        for name in _kept(call.args[1]):
            saved.setdefault(name, []).append((path.stem, cells.name_of(call)))
    found: dict[tuple[str, str], None] = {}
    seen: set[tuple[str, int]] = set()

    def follow(names: Iterable[str], before: int) -> None:
        for name in sorted(names):
            if (name, before) in seen:
                continue
            seen.add((name, before))
            if name in saved:
                found.update(dict.fromkeys(saved[name]))
                continue
            for number in range(before - 1, -1, -1):
                statement = statements[number]
                if name in statement.binds:
                    found.update(dict.fromkeys(statement.records))
                    if not statement.records:
                        follow(statement.uses, number)
                    if statement.anew:
                        break

    for call in shown:
        follow(_taken(call.args[1]), sum(statement.line < call.lineno for statement in statements))
    return list(found)


class _Cells:
    """How the cells of one notebook speak of records."""

    def __init__(self, notebook: str, parameters: dict[str, Any]) -> None:
        self.notebook = notebook
        self.parameters = parameters
        self.over: dict[str, str] = {}  # a loop's name -> the parameter that it runs over

    def statements(self, body: list[ast.stmt]) -> Iterator[_Statement]:
        for node in body:
            for loop in [inner for inner in ast.walk(node) if isinstance(inner, ast.comprehension | ast.For)]:
                if isinstance(loop.target, ast.Name) and isinstance(loop.iter, ast.Name):
                    self.over[loop.target.id] = loop.iter.id
            if isinstance(node, ast.For):
                yield _Statement(
                    _names(node.target, ast.Store), True, _taken(node.iter), node.lineno, tuple(self._records(node.iter))
                )
            if isinstance(node, ast.For | ast.If | ast.With):
                yield from self.statements([*node.body, *getattr(node, "orelse", [])])
            else:
                changes = isinstance(node, ast.AugAssign) or (
                    isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
                )
                yield _Statement(_bound(node), not changes, _taken(node), node.lineno, tuple(self._records(node)))

    def _records(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        for call in _calls(node, "once"):
            yield self.notebook, self.name_of(call)
        for call in _calls(node, "read"):
            yield ast.literal_eval(call.args[0]), self.name_of(call, argument=1)
        for method, folder in SCORED.items():
            for call in _calls(node, method):
                models = call.args[0]
                keys = models.keys if isinstance(models, ast.Dict) else [None]
                yield from ((self.notebook, f"{folder}/{self._pattern(key)}") for key in keys)

    def name_of(self, call: ast.Call, *, argument: int = 0) -> str:
        """The record or figure that a call names."""
        return self._pattern(call.args[argument])

    def _pattern(self, node: ast.AST | None) -> str:
        if isinstance(node, ast.Constant):
            return re.escape(str(node.value))
        if isinstance(node, ast.JoinedStr):
            return "".join(self._pattern(part) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self._pattern(node.value)
        values = self.parameters.get(self.over.get(node.id, "")) if isinstance(node, ast.Name) else None
        return f"({'|'.join(re.escape(str(value)) for value in values)})" if isinstance(values, list) else "[^/]*"


def _calls(node: ast.AST, method: str) -> Iterator[ast.Call]:
    """The calls of a method of the bench."""
    for inner in ast.walk(node):
        match inner:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="bench"), attr=called)) if called == method:
                yield inner


def _kept(value: ast.AST) -> Iterator[str]:
    """The names of which a saved record holds all or, chosen by key, some."""
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Dict):
        for held in value.values:
            yield from _kept(held)
    elif isinstance(value, ast.BinOp):
        yield from (*_kept(value.left), *_kept(value.right))
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Facts":
        yield from _kept(value.args[0])
    elif isinstance(value, ast.DictComp) and isinstance(value.value, ast.Subscript):
        yield from _kept(value.value.value)


def _names(node: ast.AST, kind: type[ast.expr_context]) -> frozenset[str]:
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, kind))


def _taken(node: ast.AST) -> frozenset[str]:
    """The names that it takes from outside: not its own loops' and arguments'."""
    inside = list(ast.walk(node))
    own = [_names(inner.target, ast.Store) for inner in inside if isinstance(inner, ast.comprehension)]
    arguments = {inner.arg for inner in inside if isinstance(inner, ast.arg)}
    return _names(node, ast.Load) - arguments.union(*own)


def _bound(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef):
        return frozenset({node.name})
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    kept = [target for target in targets if target is not None]
    filled = [_names(target.value, ast.Load) for target in kept if isinstance(target, ast.Subscript)]
    return frozenset().union(*[_names(target, ast.Store) for target in kept], *filled)

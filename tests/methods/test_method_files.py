"""What every registered method's file is: short, with a card beside it that names its settings."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from ted_stream.methods import METHODS
from ted_stream.methods.static import STATIC_METHODS

ALL = {**METHODS, **STATIC_METHODS}
MOST_LINES = 80


def lines_of_code(path: Path) -> int:
    """Without documentation, comments and empty lines."""
    text = path.read_text()
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            first = node.body[0]
            documentation |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and at not in documentation for at, line in lines)


def file_of(name: str) -> Path:
    return Path(inspect.getfile(ALL[name]))


@pytest.mark.parametrize("name", sorted(ALL))
def test_is_short(name: str) -> None:
    assert lines_of_code(file_of(name)) <= MOST_LINES


@pytest.mark.parametrize("name", sorted(ALL))
def test_has_a_card(name: str) -> None:
    card = file_of(name).with_suffix(".md").read_text()
    missing = [field.name for field in fields(ALL[name]) if f"`{field.name}`" not in card]
    assert not missing, f"the card of {name} does not name {missing}"
    assert card.partition("\n")[0].replace(" ", "") == f"#{ALL[name].__name__}"


def test_settings_of_one_name_have_one_type() -> None:
    """A config has one section for the settings of all dynamic methods."""
    types: dict[str, set[str]] = {}
    for method in METHODS.values():
        for field in fields(method):
            types.setdefault(field.name, set()).add(str(field.type).removesuffix(" | None").removeprefix("<class '"))
    assert {name: found for name, found in types.items() if len({kind.rstrip("'>") for kind in found}) > 1} == {}

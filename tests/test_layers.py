"""Imports point down only: a floor knows what is below it, never what is above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOOR = {
    "skip_list": 1,
    "pruning": 1,
    "reading": 2,
    "export": 2,
    "algorithms": 3,
    "cli": 4,
    "pipelines": 4,
}
# Which floors may import what only some of them know.
LOWEST_FLOOR = {"streaming": 2, "webdataset": 2, "composer": 3, "typer": 4, "rich": 4, "omegaconf": 4}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / ("pipelines" if package == "pipelines" else f"ted_stream/{package}")).rglob("*.py"))


@pytest.mark.parametrize("package", FLOOR)
def test_imports_point_down(package: str) -> None:
    assert sources(package)
    for path in sources(package):
        for module in imported_modules(path):
            top, *rest = module.split(".")
            if top == "ted_stream" and rest:
                assert FLOOR[rest[0]] <= FLOOR[package], f"{path} imports {module}"
            assert LOWEST_FLOOR.get(top, 1) <= FLOOR[package], f"{path} imports {module}"


def test_every_package_has_a_floor() -> None:
    packages = {path.name for path in (ROOT / "ted_stream").iterdir() if (path / "__init__.py").exists()}
    assert packages == set(FLOOR)


def test_reading_a_skip_list_imports_neither_torch_nor_composer() -> None:
    code = (
        "import sys, ted_stream; ted_stream.SkipList; ted_stream.read_skip_list; "
        "heavy = {'torch', 'composer', 'streaming'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

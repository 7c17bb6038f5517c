"""What a file imports, read without importing anything."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Import:
    """A module that is imported, and whether inside a function only."""

    module: str
    lazy: bool = False


def lazy_names() -> dict[str, str]:
    """Where the names come from that the top package imports when they are first used."""
    tree = ast.parse((ROOT / "ted_stream/__init__.py").read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in froms for alias in node.names}


NAMES = lazy_names()


def absolute(module: str, level: int, package: str) -> str:
    """The absolute name of ``module`` imported with ``level`` dots from within ``package``."""
    if not level:
        return module
    base = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*base, module] if module else base)


def imports_of(source: str, package: str) -> set[Import]:
    """What a module of ``package`` imports, by every form of import, inside functions and TYPE_CHECKING too."""
    found: set[Import] = set()
    tops: set[str] = set()  # names that the top package goes by

    def from_module(module: str, names: list[str], lazy: bool) -> None:
        if module != "ted_stream":
            found.add(Import(module, lazy))
            return
        for name in names:  # a name that comes from somewhere, or a module of the package
            found.add(Import(NAMES.get(name, f"ted_stream.{name}"), lazy))

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "ted_stream":  # which imports what is asked of it
                    found.add(Import(alias.name, lazy))
                if alias.name == "ted_stream":
                    tops.add(alias.asname or alias.name)
                elif alias.name.startswith("ted_stream.") and alias.asname is None:
                    tops.add("ted_stream")
        elif isinstance(node, ast.ImportFrom):
            from_module(absolute(node.module or "", node.level, package), [a.name for a in node.names], lazy)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                argument = node.args[0] if node.args else None
                assert isinstance(argument, ast.Constant), f"{ast.unparse(node)} imports who knows what"
                text = str(argument.value)
                module = text.lstrip(".")
                found.add(Import(absolute(module, len(text) - len(module), package), lazy))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in tops:
            from_module("ted_stream", [node.attr], lazy)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(source), lazy=False)
    return found


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


# What is there only with an extra that a lean environment lacks: the default install and [transformers].
OF_EXTRAS = (
    "braceexpand",
    "composer",
    "llmfoundry",
    "omegaconf",
    "sklearn",
    "ted_stream.cli",
    "ted_stream.pipelines",
    "ted_stream.reading.tar_index",
    "ted_stream.reading.tar_members",
    "ted_stream.testing.composer_contract",
    "ted_stream.trainers.composer",
    "ted_stream.trainers.foundry",
    "typer",
    "webdataset",
)


def needed_of_extras(file: Path) -> set[str]:
    """What a file of the tests, and those files of the tests that it imports, import of `OF_EXTRAS` at their top."""
    needed: set[str] = set()
    files = [file]
    for path in files:
        for module in (found.module for found in imports_of(path.read_text(), "") if not found.lazy):
            if is_in(module, OF_EXTRAS):
                needed.add(module)
            beside = (folder / f"{module}.py" for folder in (path.parent, ROOT / "tests", ROOT / "tests/trainers"))
            files += [other for other in beside if other.is_file() and other not in files]
    return needed

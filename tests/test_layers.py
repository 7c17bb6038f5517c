"""Imports point down only: a floor knows what is below it, never what is above. And classes stay small."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOOR = {
    "files": 1,
    "skip_list": 1,
    "pruning": 1,
    "methods": 2,
    "reading": 2,
    "export": 2,
    "sampler": 2,
    "engine": 3,
    "trainers": 4,
    "cli": 5,
    "pipelines": 5,
    "testing": 5,
}
YET_TO_COME: set[str] = set()
# The modules below which a host may be imported; pipelines compose all of them.
KNOWN_TO = {
    "composer": ("ted_stream.trainers.composer", "ted_stream.testing.composer_contract", "ted_stream.pipelines"),
    "streaming": ("ted_stream.reading", "ted_stream.files", "ted_stream.pipelines"),
    "webdataset": ("ted_stream.reading", "ted_stream.export"),
    "transformers": (
        "ted_stream.trainers.huggingface",
        "ted_stream.testing.huggingface_contract",
        "ted_stream.pipelines",
    ),
    "typer": ("ted_stream.cli",),
    "rich": ("ted_stream.cli",),
    "omegaconf": ("ted_stream.cli", "ted_stream.pipelines"),
}
# Modules that import a host only where they need it, inside a function.
LAZILY = {("ted_stream.files", "streaming")}

MOST_LINES = 250


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


def floor_of(module: str) -> int:
    """The floor of a module of ours; 0 for all others."""
    top, _, rest = f"{module}.".partition(".")
    if top != "ted_stream":
        return 0
    assert rest, "the top package itself is on no floor; import what is needed from it"
    return FLOOR[rest.partition(".")[0]]


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of the module of this name and source."""
    wrong = []
    for found in imports_of(source, module if is_package else module.rpartition(".")[0]):
        host = found.module.partition(".")[0]
        if floor_of(found.module) > floor_of(module):
            wrong.append(f"{module} imports {found.module}, which is above it")
        if host in KNOWN_TO and not is_in(module, KNOWN_TO[host]):
            wrong.append(f"{module} imports {found.module}, which only {KNOWN_TO[host]} may know")
        if (module, host) in LAZILY and not found.lazy:
            wrong.append(f"{module} imports {found.module} before it needs it")
    return wrong


def sources() -> list[tuple[str, Path]]:
    """Name and path of every module of the package, but the top one."""
    files = [path for path in (ROOT / "ted_stream").rglob("*.py") if "pipelines" not in path.parts]
    files += (ROOT / "ted_stream/pipelines").rglob("*.py")
    named = []
    for path in sorted(files):
        parts = path.relative_to(ROOT).with_suffix("").parts
        named.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return [(name, path) for name, path in named if name != "ted_stream"]


@pytest.mark.parametrize("package", sorted(FLOOR.keys() - YET_TO_COME))
def test_imports_point_down(package: str) -> None:
    modules = [(name, path) for name, path in sources() if is_in(name, (f"ted_stream.{package}",))]
    assert modules
    for name, path in modules:
        assert not faults(path.read_text(), name, is_package=path.stem == "__init__")


def test_every_package_has_a_floor() -> None:
    packages = {name.split(".")[1] for name, _ in sources()}
    assert packages | YET_TO_COME == set(FLOOR)
    assert not packages & YET_TO_COME, "they have come"


def test_the_top_package_imports_lazily() -> None:
    """By its floors it may import everything, but nothing before it is asked for."""
    for node in ast.parse((ROOT / "ted_stream/__init__.py").read_text()).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert ast.unparse(node) in ("from importlib import import_module", "from typing import TYPE_CHECKING, Any")


UPWARDS = {
    "import": "import ted_stream.reading.dataset",
    "import as": "import ted_stream.reading as r",
    "import among others": "import os, ted_stream.reading",
    "from": "from ted_stream.reading.dataset import Prunable",
    "from the top, a name": "from ted_stream import PrunedStreamingDataset",
    "from the top, a name as": "from ted_stream import SkipList, drop_pruned as d",
    "from the top, a module": "from ted_stream import reading",
    "by attribute": "import ted_stream\nx = ted_stream.PrunedStreamingDataset",
    "by attribute, as": "import ted_stream as t\ndef f():\n    return t.reading.Prunable",
    "by attribute, imported with a module": "import ted_stream.files\nx = ted_stream.drop_pruned",
    "relative": "from ..reading import Prunable",
    "relative, a module": "from .. import reading",
    "relative, deeper": "from ..reading.dataset import Prunable",
    "relative, the top's name": "from .. import PrunedStreamingDataset",
    "inside a function": "def f():\n    from ted_stream.reading import Prunable",
    "for types alone": "if TYPE_CHECKING:\n    from ted_stream.reading import Prunable",
    "import_module": 'import importlib\nm = importlib.import_module("ted_stream.reading")',
    "import_module by name": 'from importlib import import_module\nm = import_module("ted_stream.reading.dataset")',
    "import_module, relative": 'importlib.import_module("..reading", __package__)',
    "__import__": '__import__("ted_stream.reading")',
    "a star": "from ted_stream.reading import *",
}
HOSTS = {
    "import": "import composer",
    "import as": "import composer.core as core",
    "from": "from streaming.base.stream import Stream",
    "inside a function": "def f():\n    from composer import Trainer",
    "for types alone": "if TYPE_CHECKING:\n    from composer.core import State",
    "in a class": "class A:\n    import streaming",
    "import_module": 'importlib.import_module("composer.core")',
}
DOWNWARDS = {
    "from": "from ted_stream.skip_list import SkipList",
    "from the top": "from ted_stream import SkipList",
    "relative": "from . import layout\nfrom .layout import DatasetLayout\nfrom ..files import join",
    "by attribute": "import ted_stream\nx = ted_stream.read_skip_list",
    "others": "import numpy as np\nfrom torch import nn\nimport streaming_of_another_name",
}


@pytest.mark.parametrize("form", UPWARDS)
def test_every_form_of_import_is_seen(form: str) -> None:
    for name, is_package in (("ted_stream.skip_list.layout", False), ("ted_stream.skip_list", True)):
        assert len(faults(UPWARDS[form], name, is_package=is_package)) == 1, form
    assert not faults(UPWARDS[form], "ted_stream.cli.bench"), form


@pytest.mark.parametrize("form", HOSTS)
def test_every_import_of_a_host_is_seen(form: str) -> None:
    (fault,) = faults(HOSTS[form], "ted_stream.pruning.scores")
    assert "may know" in fault
    assert not faults(HOSTS[form], "ted_stream.pipelines.train")


@pytest.mark.parametrize("form", DOWNWARDS)
def test_imports_that_point_down_are_let_through(form: str) -> None:
    assert not faults(DOWNWARDS[form], "ted_stream.skip_list.parquet")


def test_who_may_know_a_host() -> None:
    assert not faults("import composer", "ted_stream.trainers.composer.events")
    assert faults("import composer", "ted_stream.trainers.composers")
    assert faults("import composer", "ted_stream.trainers.loop")
    assert not faults("from .composer import DataPruning", "ted_stream.trainers.loop")  # ours, not the host
    assert not faults("def f():\n    import streaming", "ted_stream.files")
    assert not faults("f = lambda: __import__('streaming')", "ted_stream.files")
    assert faults("import streaming", "ted_stream.files")
    assert faults("if TYPE_CHECKING:\n    import streaming", "ted_stream.files")


def test_imports_of_names_that_are_not_known_are_refused() -> None:
    for unseen in ("from ted_stream import Nothing", "import ted_stream.nothing", "import_module(name)"):
        with pytest.raises((KeyError, AssertionError)):
            faults(unseen, "ted_stream.cli.bench")


# What a process pays for what it uses.

FRESH = {
    "reading a skip-list": (
        "import sys, numpy as np\n"
        "from ted_stream import SkipList, read_skip_list, write_skip_list\n"
        "from ted_stream.skip_list import DatasetLayout, ShardLayout, StreamLayout\n"
        "layout = DatasetLayout(streams=(StreamLayout(shards=(ShardLayout(name='a', size=1, samples=4),)),))\n"
        "weights = np.ones(3, np.float32)\n"
        "words = dict(epoch=0, keep_ratio=0.75, method='m', run='r', weights=weights)\n"
        "made = SkipList.from_pruned_ids(layout, np.array([2]), **words)\n"
        "write_skip_list(made, sys.argv[1] + '/list.parquet')\n"
        "assert read_skip_list(sys.argv[1] + '/list.parquet', layout=layout) == made\n",
        {"torch", "composer", "streaming"},
    ),
    "a sampler": (
        "import ted_stream\n"
        "sampler = ted_stream.PrunedSampler([3, 1, 4, 1, 5], shuffle=True)\n"
        "assert sorted(sampler) == [0, 1, 2, 3, 4]\n",
        {"composer", "streaming", "webdataset"},
    ),
    "the top package": ("import ted_stream\nassert 'TED' in dir(ted_stream)\n", {"torch", "numpy", "pyarrow"}),
    "checking a method": (
        "import ted_stream.testing, ted_stream.testing.contract_process\n",
        {"composer", "transformers", "accelerate"},
    ),
    "local files": (
        "import sys\n"
        "from ted_stream.files import read_bytes, write_bytes\n"
        "write_bytes(sys.argv[1] + '/a', b'x')\n"
        "assert read_bytes(sys.argv[1] + '/a') == b'x'\n",
        {"torch", "numpy", "streaming"},
    ),
}


@pytest.mark.parametrize("use", FRESH)
def test_what_is_not_used_is_not_imported(use: str, tmp_path: Path) -> None:
    code, heavy = FRESH[use]
    code += f"import sys; heavy = {heavy} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_reading_a_skip_list_imports_neither_torch_nor_composer() -> None:
    code = (
        "import sys, ted_stream; ted_stream.SkipList; ted_stream.read_skip_list; "
        "heavy = {'torch', 'composer', 'streaming'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What a reader can hold in mind.


def large_classes(source: str) -> dict[str, int]:
    """Classes of more than `MOST_LINES` lines, decorators not counted, and how many they have."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    lines = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in classes}
    return {name: count for name, count in lines.items() if count > MOST_LINES}


def test_no_class_is_large() -> None:
    found = {name: lines for _, path in sources() for name, lines in large_classes(path.read_text()).items()}
    assert not found, found


def test_a_large_class_is_seen() -> None:
    body = "    x = 1\n" * (MOST_LINES - 1)
    assert not large_classes(f"class Small:\n{body}\ndef f():\n    class Inner:\n    {body}")
    assert large_classes(f"class Large:\n{body}    y = 2\n") == {"Large": MOST_LINES + 1}


def test_no_adapter_is_long() -> None:
    """What knows a host is thin: what is more than that belongs into the engine."""
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "ted_stream/trainers").rglob("*.py")}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}

"""Imports point down only: a floor knows what is below it, never what is above. And classes stay small."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imports import imports_of, is_in

from ted_stream.extras import EXTRAS

ROOT = Path(__file__).parents[1]
FLOOR = {
    "digests": 1,
    "extras": 1,
    "files": 1,
    "folders": 1,
    "processes": 1,
    "seeding": 1,
    "showing": 1,
    "skip_list": 1,
    "stores": 1,
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
    "composer": (
        "ted_stream.trainers.composer",
        "ted_stream.trainers.foundry",
        "ted_stream.testing.composer_contract",
        "ted_stream.pipelines",
    ),
    "llmfoundry": ("ted_stream.trainers.foundry",),
    "streaming": ("ted_stream.reading", "ted_stream.files", "ted_stream.stores", "ted_stream.pipelines"),
    "webdataset": ("ted_stream.reading", "ted_stream.export"),
    "transformers": (
        "ted_stream.trainers.huggingface",
        "ted_stream.testing.huggingface_contract",
        "ted_stream.pipelines",
    ),
    "braceexpand": ("ted_stream.reading",),
    "typer": ("ted_stream.cli",),
    "rich": ("ted_stream.cli",),
    "omegaconf": ("ted_stream.cli", "ted_stream.pipelines"),
    **dict.fromkeys(EXTRAS["pipelines"], ("ted_stream.pipelines",)),
}
# Modules that import a host only where they need it, inside a function.
LAZILY = {
    ("ted_stream.files", "streaming"),
    ("ted_stream.reading.drop_pruned", "webdataset"),
    ("ted_stream.reading.tar_shards", "webdataset"),
}
# What the default install brings: our own dependencies, those of streaming (clients of stores) and those of torch.
DEFAULT = {
    *("filelock", "numpy", "pyarrow", "pyroaring", "streaming", "torch"),
    *("azure", "boto3", "botocore", "google", "huggingface_hub", "requests", "s3transfer", "tqdm"),
    *("typing_extensions", "xxhash"),
}

MOST_LINES = 250


def floor_of(module: str) -> int:
    """The floor of a module of ours; 0 for all others."""
    top, _, rest = f"{module}.".partition(".")
    if top != "ted_stream":
        return 0
    assert rest, "the top package itself is on no floor; import what is needed from it"
    return FLOOR[rest.partition(".")[0]]


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


def test_what_is_imported_is_installed_by_default_or_by_an_extra() -> None:
    known = {"ted_stream", *sys.stdlib_module_names, *DEFAULT, *(module for of in EXTRAS.values() for module in of)}
    for name, path in sources():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        unknown = {found.module.partition(".")[0] for found in imports_of(path.read_text(), package)} - known
        assert not unknown, name


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
    "a run of a plain loop": (
        "import sys, torch\n"
        "from torch.nn.functional import cross_entropy\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from ted_stream import TED, PrunedSampler, Pruner, read_skip_list\n"
        "torch.manual_seed(0)\n"
        "y = torch.arange(200) % 10\n"
        "dataset = TensorDataset(torch.eye(10)[y].repeat_interleave(6, 1) + torch.randn(200, 60), y)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(60, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)\n"
        "loader = DataLoader(dataset, batch_size=16, sampler=PrunedSampler(dataset))\n"
        "with Pruner(TED(0.7), model, loader, epochs=6, folder=sys.argv[1]) as pruner:\n"
        "    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * pruner.full_length)\n"
        "    scheduler = pruner.stretch(cosine)\n"
        "    for epoch in pruner:\n"
        "        for x, y in pruner.batches():\n"
        "            pruner.loss(cross_entropy(model(x), y)).backward()\n"
        "            optimizer.step()\n"
        "            optimizer.zero_grad()\n"
        "            scheduler.step()\n"
        "torch.save(pruner.state_dict(), sys.argv[1] + '/state.pt')\n"
        "kept = min(record.kept for record in pruner.records)\n"
        "epoch = [record.kept for record in pruner.records].index(kept)\n"
        "path = f'{sys.argv[1]}/skip_lists/ep{epoch:04d}.parquet'\n"
        "assert len(list(PrunedSampler(dataset, skip_list=read_skip_list(path)))) == kept < 200\n",
        {"composer", "streaming", "transformers", "accelerate", "torchvision", "sklearn", "typer", "webdataset"}
        | {"omegaconf", "rich", "boto3"},
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
        {"torch", "numpy", "streaming", "requests", "boto3"},
    ),
}


@pytest.mark.quick("the top package", "local files")
@pytest.mark.parametrize("use", FRESH)
def test_what_is_not_used_is_not_imported(use: str, tmp_path: Path) -> None:
    code, heavy = FRESH[use]
    code += f"import sys; heavy = {heavy} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells the names of threads")
def test_reading_leaves_no_thread_of_arrow(tmp_path: Path) -> None:
    # One that frees bytes of Python's while the interpreter ends aborts a run that has done its work.
    code = FRESH["reading a skip-list"][0] + (
        "import os\n"
        "names = [open(f'/proc/self/task/{task}/comm').read().strip() for task in os.listdir('/proc/self/task')]\n"
        "assert len([name for name in names if 'jemalloc' not in name]) == 1, names\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    )


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
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "ted_stream/trainers").rglob("*.py")}
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}

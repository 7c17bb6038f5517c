"""Small datasets and processes that many tests share."""

import argparse
import contextlib
import gc
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from imports import needed_of_extras
from s3_servers import s3_server
from streaming import MDSWriter
from streaming.base.shared import SharedMemory

from ted_stream.reading import node_jobs
from ted_stream.testing.processes import run_to_the_end

# Of the tables that commands print: taken over by the first one that a process prints.
os.environ["COLUMNS"] = "200"
NUM_FEATURES = 6
NUM_CLASSES = 3
LAUNCHERS = {
    # Of accelerate's launchers the one that starts ranks by itself, on the CPU too.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--main_process_port=0", "--num_processes"],
    "composer": ["composer.cli.launcher", "-n"],
    "torch": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
}
# Composer's launcher lets go of the port that it chose until its ranks listen, and another launcher may take it. These
# are not given to who asks for any, and each worker of pytest begins elsewhere.
PORTS = itertools.cycle(range(20_000 + os.getpid() * 97 % 12_000, 32_768))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lean",
        action="store_true",
        help="leave out what needs more than the default install and [transformers]; without this it fails there",
    )
    parser.addoption(
        "--part",
        type=_part,
        metavar="N/PARTS",
        help="of the files that hold long trials the Nth, and every PARTS-th after it",
    )


def _part(text: str) -> slice:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 2/8.")
    return slice(int(number) - 1, None, int(parts))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("lean"):
        return None
    file = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if file.suffix == ".py" and file.is_file() and needed_of_extras(file) else None


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(name: str) -> Iterator[None]:
    """Refuse a mark ``quick`` that names a case which the test does not have: it would be long unasked."""
    made: Any = yield
    for item in made if isinstance(made, list) else ():
        if quick := item.get_closest_marker("quick"):
            unknown = {*quick.args} - {other.callspec.id for other in made if hasattr(other, "callspec")}
            if unknown:
                raise pytest.UsageError(f"{name}: the mark quick names {sorted(unknown)}, which is no case of it.")
    return made


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick and item.callspec.id not in quick.args:
            item.add_marker("long")
    if config.getoption("lean"):
        _select(config, items, lambda item: not item.get_closest_marker("composer"))
    if part := config.getoption("part"):
        files = sorted({item.path for item in items if item.get_closest_marker("long")})[part]
        _select(config, items, lambda item: item.path in files)


def _select(config: pytest.Config, items: list[pytest.Function], taken: Callable[[pytest.Function], bool]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not taken(item)])
    items[:] = [item for item in items if taken(item)]


@pytest.fixture(autouse=True, scope="module")
def freeze_what_stays() -> None:
    """What was imported, and what the files before have left, is never freed.

    Going through it takes each collection of garbage half a second, and many tests and Trainers collect some.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def give_back_shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streaming keeps what a dataset shares open until the process exits, and every new dataset opens all of it."""
    blocks: list[SharedMemory] = []
    make = SharedMemory.__init__

    def record(self: SharedMemory, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        blocks.append(self)

    monkeypatch.setattr(SharedMemory, "__init__", record)
    held = set(node_jobs._held)
    yield
    if blocks:
        gc.collect()
    for block in blocks:
        with contextlib.suppress(BufferError):  # an array still looks at it
            block.cleanup()
    for prefix in node_jobs._held.keys() - held:
        os.close(node_jobs._held.pop(prefix))


@pytest.fixture(scope="session")
def make_mds(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function that writes n seeded samples {id, x, y} into several small shards and returns their folder."""

    def make(num_samples: int, *, per_shard: int = 50, seed: int = 0) -> str:
        folder = tmp_path_factory.mktemp("mds")
        rng = np.random.default_rng(seed)
        columns = {"id": "int", "x": f"ndarray:float32:{NUM_FEATURES}", "y": "int"}
        row_bytes = 2 * 8 + 4 * NUM_FEATURES + 4
        with MDSWriter(out=str(folder), columns=columns, size_limit=row_bytes * per_shard + 300) as writer:
            centres = np.random.default_rng(1).normal(size=(NUM_CLASSES, NUM_FEATURES))
            for index in range(num_samples):
                y = int(rng.integers(NUM_CLASSES))
                x = (centres[y] + rng.normal(size=NUM_FEATURES)).astype(np.float32)
                writer.write({"id": index, "x": x, "y": y})
        return str(folder)

    return make


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """A function that runs a script of the test folder on 1 or more ranks and fails with its output.

    After the timeout, and in the end, nothing is left of the processes that the script started.
    """

    def run(
        script: Path,
        *arguments: object,
        ranks: int = 1,
        launcher: str = "composer",
        timeout: float = 300,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", *LAUNCHERS[launcher], str(ranks)]
        command += [str(script), *map(str, arguments)]
        # Libraries leave the place of a single process' group there, which a launcher would take for its ranks'.
        inherited = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
        environment = {**inherited, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(variables or {})}
        if ranks > 1 and launcher == "composer":
            environment["MASTER_PORT"] = str(next(filter(_is_free, PORTS)))
        run_to_the_end(command, environment, timeout)

    return run


def _is_free(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    if dist.is_initialized():  # by Composer, in a test before
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server with a bucket "training", which streaming's down- and uploaders talk to as well."""
    with s3_server("training") as (client, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield client

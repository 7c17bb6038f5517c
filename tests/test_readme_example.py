"""The README's first example trains: data on an S3 server over HTTP, workers forked and spawned, one rank and two."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from readme_example import NUM_CLASSES, REMOTE, SIDE
from s3_servers import s3_server
from streaming import MDSWriter
from webdataset.writer import TarWriter

from ted_stream import read_skip_list
from ted_stream.reading.tar_index import index_tars

SCRIPT = Path(__file__).with_name("readme_example.py")
NUM_SAMPLES = 1800
PER_SHARD = 200
EPOCHS = 2
TARS = REMOTE + "-tars"


def rows() -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for _ in range(NUM_SAMPLES):
        label = int(rng.integers(NUM_CLASSES))
        yield rng.integers(0, 128, (SIDE, SIDE, 3), np.uint8) + np.uint8(30 * label), label


def write_mds(folder: Path) -> None:
    columns = {"npy": f"ndarray:uint8:{SIDE},{SIDE},3", "cls": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=PER_SHARD * (3 * SIDE * SIDE + 12) + 300) as writer:
        for image, label in rows():
            writer.write({"npy": image, "cls": label})


def write_tars(folder: Path) -> None:
    folder.mkdir()
    samples = rows()
    for shard in range(NUM_SAMPLES // PER_SHARD):
        with TarWriter(str(folder / f"{shard:02}.tar")) as writer:
            for index in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                image, label = next(samples)
                array = io.BytesIO()
                np.save(array, image)
                writer.write({"__key__": f"{index:05}", "npy": array.getvalue(), "cls": str(label).encode()})
    index_tars(str(folder / f"{{00..{NUM_SAMPLES // PER_SHARD - 1:02}}}.tar"))


@dataclass
class Examples:
    """Runs of the example, several in a process, since importing takes longer than a run."""

    folder: Path
    shards: dict[str, Path]
    launch: Callable[..., None]
    variables: dict[str, str]

    def run(self, cases: Sequence[str], *, start: str, ranks: int, remote: str = REMOTE, timeout: float) -> None:
        """Run the example with a local folder that is empty, half full or full, or resumed from the first run."""
        settings = []
        for case in cases:
            name = f"{remote.rpartition('/')[2]}-{case}"
            files = sorted(self.shards[remote].iterdir())
            there = {"half": files[: len(files) // 2], "full": files}.get(case, [])
            (self.folder / name / "train").mkdir(parents=True)
            for path in there:
                shutil.copy(path, self.folder / name / "train")
            common = {"remote": remote, "epochs": EPOCHS, "start": start, "local": str(self.folder / name)}
            resumes = settings[0]["name"] if case == "resumed" else None
            settings.append(common | {"name": name, "resumes": resumes})
        (self.folder / "cases.json").write_text(json.dumps(settings))
        self.launch(SCRIPT, self.folder, ranks=ranks, timeout=timeout, variables=self.variables)
        expected = self.result(settings[0]["name"])
        for setting in settings:
            assert self.result(setting["name"]) == expected
            self.check(setting["name"], run=setting["resumes"] or setting["name"])

    def result(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}-rank0.json").read_text())

    def check(self, name: str, run: str) -> None:
        """The run pruned, and its shards came into its local folder."""
        folder = self.folder / "ted_stream_runs" / run
        epochs = json.loads((folder / "run.json").read_text())["epochs"]
        kept = [epoch["kept"] for epoch in epochs]
        assert len(kept) == EPOCHS
        assert NUM_SAMPLES == kept[0] > kept[-1] > 0
        for epoch in epochs:
            assert read_skip_list(folder / epoch["skip_list"], digest=epoch["digest"]).num_kept == epoch["kept"]
        assert len(list((self.folder / name / "train").iterdir())) > NUM_SAMPLES // PER_SHARD


@pytest.fixture(scope="module")
def make_examples(tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]) -> Iterator[Any]:
    """A function that makes empty Examples; their server and datasets are the same."""
    shards = {REMOTE: tmp_path_factory.mktemp("shards") / "mds", TARS: tmp_path_factory.mktemp("shards") / "tars"}
    write_mds(shards[REMOTE])
    write_tars(shards[TARS])
    with s3_server("bucket") as (client, variables):
        for remote, folder in shards.items():
            for path in folder.iterdir():
                client.upload_file(str(path), "bucket", f"{remote.rpartition('/')[2]}/train/{path.name}")
        yield lambda: Examples(tmp_path_factory.mktemp("runs"), shards, launch, variables)


# Every pair of a way that workers start, a number of ranks and a format. Each worker that is spawned imports torch,
# which takes longer than all else: there are two of them instead of eight.
@pytest.mark.long
@pytest.mark.parametrize(
    ("start", "ranks", "remote", "cases"),
    [
        pytest.param("fork", 1, REMOTE, ["empty", "half", "full", "resumed"], id="fork-1-mds"),
        pytest.param("fork", 2, TARS, ["empty", "half", "full", "resumed"], id="fork-2-tars"),
        pytest.param("spawn", 1, TARS, ["half"], id="spawn-1-tars"),
        pytest.param("spawn", 2, REMOTE, ["empty", "resumed"], id="spawn-2-mds"),
    ],
)
def test_the_example(
    make_examples: Callable[[], Examples], start: str, ranks: int, remote: str, cases: list[str]
) -> None:
    make_examples().run(cases, start=start, ranks=ranks, remote=remote, timeout=1500)

"""Whatever was done with a dataset in a process, the workers of its DataLoaders read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_s3 import FaultyS3
from s3_servers import s3_server
from streaming import MDSWriter

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("used_datasets.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small shards, plain and compressed."""
    folder = tmp_path_factory.mktemp("shards")
    for name, compression in {"plain": None, "zstd": "zstd"}.items():
        rng, columns = np.random.default_rng(0), {"id": "int", "x": "bytes"}
        with MDSWriter(out=str(folder / name), columns=columns, size_limit=10_000, compression=compression) as writer:
            for index in range(60):
                writer.write({"id": index, "x": rng.bytes(900)})
    return folder


def test_after_a_fork(shards: Path, launch: Callable[..., None], tmp_path: Path) -> None:
    with s3_server("training") as (client, variables), FaultyS3(variables["S3_ENDPOINT_URL"]) as front:
        for path in shards.glob("*/*"):
            client.upload_file(str(path), "training", f"{path.parent.name}/{path.name}")
        # Through a front without faults, since it keeps connections open, as real stores do.
        launch(SCRIPT, tmp_path, shards, variables=variables | {"S3_ENDPOINT_URL": front.url})


def test_after_pickling(shards: Path, launch: Callable[..., None], tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path, shards, "forkserver", "all_of_it")


def test_after_pickling_what_was_used_less(shards: Path, launch: Callable[..., None], tmp_path: Path) -> None:
    launch(SCRIPT, tmp_path, shards, "forkserver", "samples", "an_iterator_that_is_kept", "eviction")

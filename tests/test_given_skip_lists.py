"""What is given for a skip-list and is none is named for what it is, by every reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import write_run

from ted_stream import FixedSubset, PrunedSampler, SkipListError, read_skip_list
from ted_stream.export import export_run, write_scores
from ted_stream.export.run_files import running_scores_to_bytes

N = 10
LAYOUT = PrunedSampler(range(N)).layout
READERS: dict[str, Callable[[Any], Any]] = {
    "read_skip_list": read_skip_list,
    "sampler": lambda path: PrunedSampler(range(N), skip_list=path),
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return READERS[request.param]


def write(kind: str, path: Path) -> None:
    scores = np.zeros(N, np.float32)
    if kind == "a manifest of kept samples":
        write_run(path.parent / "run", LAYOUT, [np.arange(N) > 2])
        export_run(path.parent / "run", path)
    elif kind == "a file of scores (ted-stream score)":
        write_scores(path, LAYOUT, scores, provenance={})
    elif kind == "the running scores of a run":
        path.write_bytes(running_scores_to_bytes(scores, epoch=0, layout=LAYOUT))
    else:
        pq.write_table(pa.table({"score": scores}), path)


KINDS = ["a manifest of kept samples", "a file of scores (ted-stream score)", "the running scores of a run"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_of_ours(kind: str, read: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "given.parquet"
    write(kind, path)
    with pytest.raises(SkipListError) as error:
        read(str(path))
    assert f"given.parquet': this is {kind}, no skip-list; check the path: a run's lists are in its" in str(error.value)
    with pytest.raises(SkipListError, match="no skip-list"):
        FixedSubset(str(path)).given(LAYOUT)


def test_somebody_elses_parquet_file(read: Callable[[Any], Any], tmp_path: Path) -> None:
    write("another", tmp_path / "given.parquet")
    with pytest.raises(SkipListError, match=r"without ted_stream\.\* metadata is no skip-list; check the path"):
        read(tmp_path / "given.parquet")


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder(ending: str, read: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a folder, and a skip-list is a file; .* such as skip_lists/ep"):
        read(f"{tmp_path}{ending}")


def test_an_empty_path(read: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"the path of a skip-list is '', which names no file; .* or None"):
        read("")


@pytest.mark.parametrize("given", [[1, 2], np.array([1, 2]), 3], ids=repr)
def test_sample_ids(given: Any, read: Callable[[Any], Any]) -> None:
    told = rf"a skip-list is an object of type {type(given).__name__}; .*SkipList\.from_pruned_ids makes a list"
    with pytest.raises(TypeError, match=told):
        read(given)

"""A run whose data was replaced by data of the same names, sizes and counts does not go on."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from composer import Trainer
from small_run import make_ted

from ted_stream.engine import engine as engine_module
from ted_stream.engine.state import refuse_other_streams
from ted_stream.export import Selection, export_run
from ted_stream.reading import dataset as dataset_module
from ted_stream.skip_list import read_skip_list

NUM_SAMPLES = 101


@pytest.fixture
def run(make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Any]:
    data = tmp_path / "data"

    def run(epochs: int, *, seed: int, **arguments: Any) -> Any:
        gc.collect()
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(make_mds(NUM_SAMPLES, seed=seed), data)
        ted = make_ted(0.6, annealing=0, folder=str(tmp_path / "run"))
        names = {"run_name": "run", "save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep"}
        trainer = make_trainer(str(data), [ted], max_duration="4ep", save_overwrite=True, **names, **arguments)
        trainer.fit(duration=f"{epochs}ep")
        trainer.close()
        return ted.records

    return run


def checkpoint(tmp_path: Path) -> str:
    return str(next((tmp_path / "checkpoints").glob("ep2-*-rank0.pt")))


def test_a_run_does_not_go_on_after_its_data_was_replaced(run: Callable[..., Any], tmp_path: Path) -> None:
    records = run(2, seed=0)
    with pytest.raises(ValueError, match=r"agree, but the content differs\. The data was made anew"):
        run(2, seed=1, load_path=checkpoint(tmp_path))
    assert run(2, seed=0, load_path=checkpoint(tmp_path))[:2] == records


@pytest.fixture
def begun_by_an_earlier_version(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of a run that knows nothing of content."""
    state_dict = engine_module.PruningEngine.state_dict

    def earlier(self: Any, **arguments: Any) -> dict[str, Any]:
        state = state_dict(self, **arguments)
        assert state.pop("shape_keys") == state["stream_keys"]
        return state

    with monkeypatch.context() as patched:
        patched.setattr(dataset_module, "shard_contents", lambda dataset, folder: [""] * dataset.num_shards)
        patched.setattr(engine_module.PruningEngine, "state_dict", earlier)
        run(2, seed=0)


@pytest.mark.usefixtures("begun_by_an_earlier_version")
def test_a_run_of_an_earlier_version_goes_on_with_one_warning(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="could not be checked: it was made without digests") as told:
        records = run(2, seed=0, load_path=checkpoint(tmp_path))
    assert len(records) == 4
    assert len([w for w in told if "could not be checked" in str(w.message)]) == 1
    lists = [read_skip_list(tmp_path / "run" / record.skip_list, digest=record.digest) for record in records]
    assert [found.layout.knows_content for found in lists] == [False, False, True, True]
    # The scores of the end, beside a list of the beginning.
    exported = export_run(tmp_path / "run", tmp_path / "manifest.parquet", selection=Selection(epoch=1))
    assert (exported.kept, exported.scored_after) == (records[1].kept, 3)


def test_streams_are_refused_where_names_or_known_content_differ() -> None:
    def streams(keys: list[str], shapes: list[str]) -> dict[str, list[str]]:
        return {"stream_keys": keys, "shape_keys": shapes}

    known, unknown = streams(["a1", "b1"], ["a", "b"]), streams(["a", "b"], ["a", "b"])
    for scored in (known, unknown, {"stream_keys": ["a", "b"]}):
        refuse_other_streams(scored, unknown)
        refuse_other_streams(scored, known)
        with pytest.raises(ValueError, match=r"the training dataset has \['b1', 'a1'\]: scores go by sample id"):
            refuse_other_streams(scored, streams(["b1", "a1"], ["b", "a"]))
    for other in (["a1", "b2"], ["b1", "a1"]):
        with pytest.raises(ValueError, match="but the content differs"):
            refuse_other_streams(streams(["a1", "b1"], ["a", "a#1"]), streams(other, ["a", "a#1"]))

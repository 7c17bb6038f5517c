"""A run folder holds one run; what a killed one left is replaced, gone on with, or made a manifest of."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from loop_runs import METHODS, features, train
from torch.utils.data import DataLoader, TensorDataset

from ted_stream import PrunedSampler, RandomPruning, read_skip_list
from ted_stream.cli.export import export
from ted_stream.engine import run_folder
from ted_stream.export import Selection, export_run

TED, RANDOM = METHODS["ted"], METHODS["random"]
NAMED: dict[str, Any] = {"run_name": "r"}


class Stop(Exception):
    """In place of a kill; the pruner's last words change nothing in the folder."""


def stopped(method: Any, folder: Path | str, *, after: int) -> None:
    """A run that ends after so many batches, of 13 in an epoch."""

    def stop(batch: int, state: Any) -> None:
        if batch == after:
            raise Stop

    with pytest.raises(Stop):
        train(method, str(folder), after_batch=stop, pruner_options=NAMED)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    train(RANDOM, str(tmp_path), pruner_options=NAMED)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds an earlier run, 'r': RandomPruning\(.*, 5 of 5 epochs.*=True"):
        train(RANDOM, str(tmp_path))
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train(TED, str(tmp_path))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", None])
def test_a_run_of_which_little_is_known_is_refused(text: str | None, tmp_path: Path) -> None:
    stopped(TED, tmp_path, after=20)
    (tmp_path / "run.json").unlink() if text is None else (tmp_path / "run.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"of which there is no run\.json that can be read"):
        train(TED, str(tmp_path))


def test_overwriting_leaves_nothing_of_the_other_run(tmp_path: Path) -> None:
    train(RANDOM, str(tmp_path), pruner_options=NAMED)
    train(TED, str(tmp_path / "alone"), pruner_options=NAMED)
    stray = tmp_path / "skip_lists/ep0099.parquet"
    shutil.copy(tmp_path / "skip_lists/ep0000.parquet", stray)
    alone = contents(tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone")
    train(TED, str(tmp_path), pruner_options={**NAMED, "overwrite": True})
    assert not stray.exists()
    found = contents(tmp_path)
    assert {name: data for name, data in found.items() if name != "run.json"} == {
        name: data for name, data in alone.items() if name != "run.json"
    }


def test_a_run_that_was_stopped_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    expected = train(TED, str(tmp_path / "other"), pruner_options=NAMED)
    stopped(TED, tmp_path / "run", after=22)
    for place in ("", "skip_lists"):
        (tmp_path / "run" / place / ".ep0002.parquet.0123456789abcdef.tmp").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"was stopped after 2 of 5 epochs.*begins again"):
        assert train(TED, str(tmp_path / "run"), pruner_options=NAMED) == expected
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "other").keys()


def test_going_on_removes_what_comes_again(tmp_path: Path) -> None:
    """A manifest, and lists of epochs after the checkpoint."""
    saved: dict[int, Any] = {}
    train(TED, str(tmp_path), after_batch=lambda batch, state: saved.setdefault(batch, state()), pruner_options=NAMED)
    seen: list[set[str]] = []

    def look(batch: int, state: Any) -> None:
        seen.append(set(contents(tmp_path)))

    train(TED, str(tmp_path), resume=saved[15], after_batch=look, pruner_options=NAMED)
    lists = {f"skip_lists/ep000{epoch}.parquet" for epoch in range(2)}
    assert seen[0] == {".run.lock", "run.json", "running_scores.parquet", *lists}
    assert {"manifest.parquet", "skip_lists/ep0004.parquet"} <= contents(tmp_path).keys()


@pytest.mark.long
def test_going_on_keeps_the_scores_of_the_checkpoint(tmp_path: Path) -> None:
    saved: dict[int, Any] = {}

    def save(batch: int, state: Any) -> None:
        saved[batch] = copy.deepcopy(state())

    train(TED, str(tmp_path), after_batch=save, pruner_options=NAMED)
    whole = contents(tmp_path)
    found: list[Any] = []

    def export_now(batch: int, state: Any) -> None:
        found.append(export_run(tmp_path, tmp_path / f"{batch}.parquet", selection=Selection(epoch=0)))

    train(TED, str(tmp_path), resume=saved[15], after_batch=export_now, pruner_options=NAMED)
    assert found[0].scored_after == 0  # batch 15 lies in epoch 1
    assert found[-1].scored_after == 3
    train(TED, str(tmp_path), resume=saved[max(saved)], pruner_options=NAMED)  # nothing is left to do
    again = contents(tmp_path)
    for name in ("running_scores.parquet", "manifest.parquet"):
        assert again[name] == whole[name]


def test_another_run_of_the_process_is_kept_out(tmp_path: Path) -> None:
    def begin_another(batch: int, state: Any) -> None:
        if batch == 15:
            with pytest.raises(RuntimeError, match="in use by another run of this process"):
                train(TED, str(tmp_path), pruner_options=NAMED)

    train(TED, str(tmp_path), after_batch=begin_another, pruner_options=NAMED)


def test_a_relative_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train(TED, "here", after_batch=lambda batch, state: monkeypatch.chdir(tmp_path / "elsewhere"))
    assert len(list(tmp_path.glob("here/skip_lists/*"))) == 5
    assert not list(tmp_path.glob("elsewhere/*"))


@pytest.mark.long
def test_a_folder_in_use_is_refused_until_its_job_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_ORPHANS", 0.2)
    code = (
        "import sys; from ted_stream.engine.run_folder import RunLock; lock = RunLock(sys.argv[1]); "
        "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="in use by a job that is at work"):
            train(TED, str(tmp_path))
        other.kill()
    train(TED, str(tmp_path))


def test_a_job_whose_folder_another_has_taken_stops(tmp_path: Path) -> None:
    """Where locks do not reach: on another node, in an object store."""

    def take(batch: int, state: Any) -> None:
        if batch == 15:
            run = json.loads((tmp_path / "run.json").read_text())
            (tmp_path / "run.json").write_text(json.dumps({**run, "job": "another"}))

    with pytest.raises(RuntimeError, match="Another job has begun or gone on with a run"):
        train(TED, str(tmp_path), after_batch=take)
    assert json.loads((tmp_path / "run.json").read_text())["job"] == "another"


@pytest.mark.long
def test_a_folder_in_an_object_store(s3: Any) -> None:
    uri = "s3://training/run"
    stopped(TED, uri, after=22)
    with pytest.warns(UserWarning, match="begins again"):
        train(TED, uri)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="holds an earlier run"):
            train(TED, uri, pruner_options=options)
    assert export_run(uri).finished


# Manifests from folders


def test_a_run_that_died_after_its_last_epoch_has_its_manifest(tmp_path: Path) -> None:
    train(TED, str(tmp_path / "lived"), pruner_options=NAMED)
    expected = (tmp_path / "lived/manifest.parquet").read_bytes()
    for number, name in enumerate(("lived", "died")):
        if name == "died":
            shutil.copytree(tmp_path / "lived", tmp_path / "died")
            run = json.loads((tmp_path / "died/run.json").read_text())
            (tmp_path / "died/run.json").write_text(json.dumps({**run, "finished": False}))
        (tmp_path / name / "manifest.parquet").unlink()
        done = export_run(tmp_path / name)
        assert (done.samples, done.scored_after, done.finished) == (101, 4, not number)
        assert done.kept == pq.read_table(done.path).num_rows < 101
        assert Path(done.path).read_bytes() == expected


def test_a_stopped_run_and_single_epochs(tmp_path: Path) -> None:
    stopped(TED, tmp_path, after=22)
    for epoch in (None, 0, 1):
        out = tmp_path / f"{epoch}.parquet"
        done = export_run(tmp_path, out, selection=Selection(epoch=epoch))
        assert (done.epoch, done.scored_after, done.finished) == (1 if epoch is None else epoch, 1, False)
        skip_list = read_skip_list(tmp_path / f"skip_lists/ep000{done.epoch}.parquet")
        assert pq.read_table(out)["sample_id"].to_pylist() == skip_list.kept_ids().tolist()
    assert not (tmp_path / "manifest.parquet").exists()
    own = tmp_path / export_run(tmp_path).path
    before = own.read_bytes()
    with pytest.raises(FileExistsError, match=r"manifest\.parquet exists; name another file"):
        export_run(tmp_path, selection=Selection(epoch=0))
    assert own.read_bytes() == before


@pytest.mark.parametrize("linked", [False, True])
def test_an_export_leaves_the_run_its_own_files(linked: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(TED, folder, after=22)
    (folder / "checkpoints").mkdir()
    before = contents(folder)
    named = folder
    if linked:
        named = tmp_path / "link"
        named.symlink_to(folder)
    own = ["run.json", "skip_lists/ep0001.parquet", "skip_lists/ep0009.parquet", "running_scores.parquet"]
    for name in (*own, "config.yaml", "checkpoints/mine.parquet"):
        with pytest.raises(ValueError, match=rf"{name} is a file of the run itself, .* such as .*/manifest\.parquet\."):
            export_run(folder, path=named / name, overwrite=True)
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder; name a file, such as .*/manifest.parquet"):
        export_run(folder, path=tmp_path)
    with pytest.raises(NotADirectoryError, match=r"run\.json is a file; give the folder of a pruned run"):
        export_run(folder / "run.json")
    assert contents(folder) == before
    for name in ("manifest.parquet", "kept/mine.parquet", "../run.json"):
        assert export_run(folder, path=named / name, overwrite=True).kept


def test_a_scheme_that_nothing_reads_is_named() -> None:
    with pytest.raises(ValueError, match=r"'foo://bar/x/run\.json' has the scheme 'foo'.*use one of .*s3"):
        train(TED, "foo://bar/x")


def test_a_method_that_measures_nothing_has_no_scores(tmp_path: Path) -> None:
    train(RANDOM, str(tmp_path))
    assert not (tmp_path / "running_scores.parquet").exists()
    done = export_run(tmp_path)
    assert done.scored_after is None
    assert pq.read_table(done.path)["score"].null_count == done.kept


def test_a_run_that_is_refused_replaces_nothing(tmp_path: Path) -> None:
    train(RANDOM, str(tmp_path), pruner_options=NAMED)
    before = contents(tmp_path)
    data = TensorDataset(*features())
    loader = DataLoader(data, batch_size=60, sampler=PrunedSampler(data), drop_last=True)
    with pytest.raises(ValueError, match="is to keep 43 samples, but it takes"):
        train(RandomPruning(0.6, annealing=0.0), str(tmp_path), loader=loader, pruner_options={"overwrite": True})
    assert contents(tmp_path) == before


def test_what_has_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json, so it is no folder of a pruned run"):
        export_run(tmp_path)
    stopped(TED, tmp_path / "early", after=5)
    with pytest.raises(ValueError, match="has pruned in none of its 0 epochs so far"):
        export_run(tmp_path / "early")
    train(RandomPruning(0.0), str(tmp_path / "whole"))
    with pytest.raises(ValueError, match="has pruned in none of its 5 epochs so far"):
        export_run(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"epoch is 5, but .* has the epochs 0 to 4"):
        export_run(tmp_path / "whole", selection=Selection(epoch=5))
    stopped(TED, tmp_path / "run", after=22)
    scores = tmp_path / "run/running_scores.parquet"
    data = bytearray(scores.read_bytes())
    data[60] ^= 1
    scores.write_bytes(data)
    with pytest.raises(ValueError, match=r"running_scores\.parquet is damaged"):
        export_run(tmp_path / "run")


def test_the_command_says_what_it_wrote_and_replaces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(TED, tmp_path, after=22)
    out = str(tmp_path / "kept.parquet")
    export(str(tmp_path), out=out)
    kept = pq.read_table(out).num_rows
    said = f"{kept} of 101 samples, which epoch 1 kept, with the scores after epoch 1, of a run that has not finished"
    assert said in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="exists; name another file"):
        export(str(tmp_path), out=out)
    export(str(tmp_path), out=out, epoch=0, overwrite=True)
    assert pq.read_table(out).num_rows == 101

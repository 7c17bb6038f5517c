"""`autoresume` on what is there: a finished run, one that died at its very end, a half-written checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import outcome

from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.training.settings import ConfigError, load_settings
from ted_stream.pipelines.training.train import train

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("one_thread")
each_trainer = pytest.mark.parametrize("trainer", ["composer", "loop"])


def starter(digits: Path, folder: Path, *common: str) -> Run:
    """A function that trains a small run in a folder, with overrides."""
    small = ["max_duration=3ep", "data.num_workers=0", "model.channels=[8, 16]", "pruning.prune_ratio=0.6"]
    small += ["pruning.method=ted"]
    same = [*small, "save_interval=1ep", "overwrite=false", f"data.path={digits}", f"folder={folder}", *common]
    return lambda *overrides: train(load_settings(QUICKSTART, [*same, *overrides]))


@pytest.fixture
def run(digits: Path, tmp_path: Path) -> Run:
    """A function that trains a small run in the folder ``run``, with overrides."""
    return starter(digits, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Run, Path]]:
    """A function that tells what starts again in the folder of a trainer's finished run, and the folder.

    It is one folder for all tests, of what is refused and leaves it as it was.
    """
    runs: dict[str, tuple[Run, Path]] = {}

    def of(trainer: str) -> tuple[Run, Path]:
        if trainer not in runs:
            folder = tmp_path_factory.mktemp("finished") / "run"
            runs[trainer] = starter(digits, folder, f"trainer={trainer}"), folder
            runs[trainer][0]()
        return runs[trainer]

    return of


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def learning_rates(folder: Path) -> list[float]:
    """Of the newest checkpoint of either trainer."""
    newest = folder / "checkpoints" / "newest"
    if newest.exists():
        return torch.load(newest.with_name(newest.read_text()), weights_only=True)["scheduler"]["_last_lr"]
    state = torch.load(folder / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]
    (scheduler,) = state["schedulers"].values()
    return scheduler["_last_lr"]


@pytest.mark.quick("ted-composer")
@each_trainer
@pytest.mark.parametrize("method", ["ted", "none"])
def test_a_finished_run_says_so(
    trainer: str, method: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [f"trainer={trainer}", f"pruning.method={method}"]
    result = run(*common)
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert run(*common, "autoresume=true", "eval_interval=2ep") == result
    assert f"The run in {tmp_path / 'run'} has finished" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


@pytest.mark.long
@each_trainer
@pytest.mark.parametrize("override", ["optimizer.lr=0.01", "pruning.prune_ratio=0.5", "max_duration=2ep"])
def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(
    trainer: str, override: str, finished: Callable[[str], tuple[Run, Path]]
) -> None:
    run, folder = finished(trainer)
    before = contents(folder)
    with pytest.raises(FileExistsError, match="holds a run of other settings that has finished its 3 epochs"):
        run(override, "autoresume=true")
    assert contents(folder) == before


@pytest.mark.quick("none-loop")
@each_trainer
@pytest.mark.parametrize("method", ["none", "ted"])
def test_other_data_do_not_go_on_with_a_run(trainer: str, method: str, run: Run, tmp_path: Path) -> None:
    """Of the same names, sizes and counts, at the same place; the same data may lie elsewhere."""
    data = tmp_path / "data"
    prepare_digits(data)
    common = [f"trainer={trainer}", f"pruning.method={method}", "autoresume=true"]
    result = run(*common, f"data.path={data}")
    data.rename(tmp_path / "moved")
    prepare_digits(data, seed=5)
    before = contents(tmp_path / "run")
    for duration in ("3ep", "4ep"):
        with pytest.raises(ConfigError, match=r"data.path: .*data holds other data than the run in"):
            run(*common, f"data.path={data}", f"max_duration={duration}")
        assert contents(tmp_path / "run") == before
    longer = run(*common, f"data.path={tmp_path / 'moved'}", "max_duration=4ep")
    assert (longer.epochs, longer.data) == (4, result.data)


@pytest.mark.long
@each_trainer
def test_a_refused_resumption_leaves_what_the_folder_said(trainer: str, run: Run, tmp_path: Path) -> None:
    """By what only the checkpoint tells: it is that of a run of another seed, elsewhere."""
    run(f"trainer={trainer}")
    run(f"trainer={trainer}", f"folder={tmp_path / 'other'}", "seed=9")
    (checkpoint,) = (tmp_path / "other" / "checkpoints").glob("ep3-ba*")
    said = [tmp_path / "run" / name for name in ("config.yaml", "data.json")]
    for has_data in (True, False):  # as runs had none before
        before = [path.read_bytes() for path in said if path.exists()]
        with pytest.raises(ValueError, match="The checkpoint was made by TED"):
            run(f"trainer={trainer}", f"load_path={checkpoint}", "max_duration=4ep")
        assert [path.read_bytes() for path in said if path.exists()] == before
        assert len(before) == 1 + has_data
        said[1].unlink(missing_ok=True)


@pytest.mark.quick("loop")
@each_trainer
def test_a_refused_beginning_leaves_no_config(trainer: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="is no checkpoint"):
        run(f"trainer={trainer}", f"load_path={tmp_path / 'other.pt'}")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.quick(
    "lr-composer",
    "scheduler-loop",
    "batch_size-composer",
    "model-loop",
    "nesterov-composer",
    "seed-loop",
    "progress-loop",
)
@each_trainer
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.lr=0.01", "optimizer.lr is 0.01, but .* begun with 0.1; set optimizer.lr=0.1 to go on"),
        ("scheduler.name=cosine", "scheduler.name is cosine, but .* set scheduler.name=onecycle"),
        ("data.batch_size=32", "data.batch_size is 32, but"),
        ("model.channels=[8, 8]", "model.channels is \\[8, 8\\], but .* set model.channels=\\[8, 16\\]"),
        ("optimizer.nesterov=true", "optimizer.nesterov is True, but .* set optimizer.nesterov=null"),
        ("seed=9", "seed is 9, but"),
        ("pruning.progress=epochs", "pruning.progress is epochs, but .* set pruning.progress=null"),
        ("pruning.prune_ratio=0.5", "pruning.prune_ratio is 0.5, but .* set pruning.prune_ratio="),
    ],
    ids=["lr", "scheduler", "batch_size", "model", "nesterov", "seed", "progress", "ratio"],
)
def test_other_settings_do_not_go_on_with_a_run(
    trainer: str, override: str, told: str, finished: Callable[[str], tuple[Run, Path]]
) -> None:
    run, folder = finished(trainer)
    before = contents(folder)
    with pytest.raises(ConfigError, match=told):
        run(override, "max_duration=4ep", "autoresume=true")
    assert contents(folder) == before


def interrupted(run: Run, folder: Path, *overrides: str) -> None:
    """A run that died in its last epoch, with the checkpoints of those before."""
    run(*overrides)
    (folder / "result.json").unlink()
    checkpoints = folder / "checkpoints"
    by_epoch = {int(path.name[2]): path for path in checkpoints.glob("ep*")}
    by_epoch.pop(max(by_epoch)).unlink()
    if (checkpoints / "newest").exists():
        (checkpoints / "newest").write_text(by_epoch[max(by_epoch)].name)
    else:
        (checkpoints / "latest-rank0.pt").unlink()
        (checkpoints / "latest-rank0.pt").symlink_to(by_epoch[max(by_epoch)].name)


@pytest.mark.long
@each_trainer
def test_a_run_does_not_go_on_for_less_than_it_was_begun_for(trainer: str, run: Run, tmp_path: Path) -> None:
    """Be the end behind the checkpoint or ahead of it."""
    interrupted(run, tmp_path / "run", f"trainer={trainer}", "max_duration=4ep")
    before = contents(tmp_path / "run")
    for shorter in (1, 2, 3):
        told = f"max_duration is {shorter}ep, but the run in .* was begun with 4ep.* set max_duration=4ep"
        with pytest.raises(ConfigError, match=told):
            run(f"trainer={trainer}", f"max_duration={shorter}ep", "autoresume=true")
    assert contents(tmp_path / "run") == before


@pytest.mark.long
def test_durations_in_batches_and_in_epochs_compare(run: Run, tmp_path: Path) -> None:
    whole = ["trainer=loop", "pruning.method=none"]
    interrupted(run, tmp_path / "run", *whole)
    for shorter in ("68ba", "2ep"):  # of 69
        with pytest.raises(ConfigError, match=f"max_duration is {shorter}, but .* was begun with 3ep"):
            run(*whole, f"max_duration={shorter}", "autoresume=true")
    assert run(*whole, "max_duration=69ba", "autoresume=true").epochs == 3


@pytest.mark.long
@each_trainer
def test_a_longer_run_goes_on_by_a_schedule_of_its_length(trainer: str, run: Run, tmp_path: Path) -> None:
    run(f"trainer={trainer}")
    assert run(f"trainer={trainer}", "max_duration=5ep", "autoresume=true").epochs == 5
    run(f"trainer={trainer}", "max_duration=5ep", f"folder={tmp_path / 'at once'}")
    assert learning_rates(tmp_path / "run") == pytest.approx(learning_rates(tmp_path / "at once"), rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("method", ["ted", "none"])
def test_a_finished_run_without_checkpoints_is_not_begun_again(method: str, run: Run, tmp_path: Path) -> None:
    common = ["trainer=loop", f"pruning.method={method}"]
    run(*common, "save_interval=null")
    before = contents(tmp_path / "run")
    for overwrite in ("false", "true"):
        with pytest.raises(FileExistsError, match="has finished, and no checkpoints to go on from"):
            run(*common, "autoresume=true", "max_duration=5ep", f"overwrite={overwrite}")
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / ".ep2-ba46.pt.tmp").write_bytes(b"half")  # none that a run goes on from
    with pytest.raises(FileExistsError, match="has finished, and no checkpoints to go on from"):
        run(*common, "autoresume=true", "max_duration=5ep")


@pytest.mark.long
def test_a_run_without_a_checkpoint_may_begin_again_by_other_settings(run: Run, tmp_path: Path) -> None:
    """Whatever else lies where checkpoints would be."""
    common = ["trainer=loop", "pruning.method=none"]
    run(*common, "save_interval=null")
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / ".ep2-ba46.pt.tmp").write_bytes(b"half")
    assert run(*common, "autoresume=true", "optimizer.lr=0.01", "max_duration=2ep").epochs == 2
    with pytest.raises(ConfigError, match=r"optimizer.lr is 0.1, but .* begun with 0.01"):
        run(*common, "autoresume=true", "max_duration=4ep")


@pytest.mark.long
@each_trainer
def test_a_run_that_died_after_its_last_checkpoint_has_all(trainer: str, run: Run, tmp_path: Path) -> None:
    expected = run(f"trainer={trainer}")
    folder = tmp_path / "run"
    manifest = (folder / "manifest.parquet").read_bytes()
    for name in ("manifest.parquet", "result.json"):
        (folder / name).unlink()
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**state, "finished": False}))
    found = run(f"trainer={trainer}", "autoresume=true")
    for name in ("epochs", "metrics", "forwarded", "save_ratio", "planned_save_ratio", "manifest", "skip_lists"):
        assert getattr(found, name) == getattr(expected, name), name
    assert (folder / "manifest.parquet").read_bytes() == manifest
    assert json.loads((folder / "result.json").read_text())["metrics"] == expected.metrics
    assert json.loads((folder / "run.json").read_text())["finished"]


@pytest.mark.long
@each_trainer
def test_a_half_written_checkpoint_is_no_obstacle(trainer: str, run: Run, tmp_path: Path) -> None:
    expected = run(f"trainer={trainer}")
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    epoch = {int(path.name[2]): path for path in checkpoints.glob("ep*") if "-ba" in path.name}
    half, whole = epoch[3], epoch[1]
    epoch[2].unlink()
    half.write_bytes(half.read_bytes()[:1000])
    if trainer == "loop":
        (checkpoints / "newest").write_text(whole.name)
    else:
        (checkpoints / "latest-rank0.pt").unlink()
        (checkpoints / "latest-rank0.pt").symlink_to(whole.name)
    (folder / "result.json").unlink()
    assert run(f"trainer={trainer}", "autoresume=true").metrics == expected.metrics


@pytest.mark.long
@pytest.mark.parametrize("method", ["ted", "none"])
@pytest.mark.parametrize("half", [True, False])
def test_a_kill_between_composers_links_to_its_newest_checkpoint_loses_nothing(
    half: bool, method: str, run: Run, tmp_path: Path
) -> None:
    expected = run("trainer=composer", f"pruning.method={method}")
    checkpoints = tmp_path / "run" / "checkpoints"
    first, _, last = sorted(checkpoints.glob("ep*"))
    if half:
        last.write_bytes(last.read_bytes()[:1000])
    else:
        last.unlink()
    (checkpoints / "latest-rank0.pt").unlink()
    (tmp_path / "run" / "result.json").unlink()
    written = first.stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"latest-rank0\.pt is gone"):
        assert run("trainer=composer", "autoresume=true", f"pruning.method={method}").metrics == expected.metrics
    assert first.stat().st_mtime_ns == written, "it began again"


@pytest.mark.long
@pytest.mark.parametrize(
    ("interval", "checkpoint", "workers"),
    [("1ep", "ep2-ba46", 1), ("9ba", "ep1-ba45", 1), ("9ba", "ep1-ba45", 0), ("23ba", "ep1-ba46", 1)],
)
def test_a_run_without_pruning_goes_on_to_the_bit_in_composer(
    interval: str, checkpoint: str, workers: int, run: Run, tmp_path: Path
) -> None:
    """From an epoch's start, its middle and behind its last batch, with random augmentation of whole batches."""
    common = ["trainer=composer", "pruning.method=none", f"save_interval={interval}", "data.augment=crop_flip"]
    common.append(f"data.num_workers={workers}")
    run(*common)
    folder = tmp_path / "run"
    expected, latest = outcome(folder), folder / "checkpoints" / "latest-rank0.pt"
    latest.unlink()
    latest.symlink_to(f"{checkpoint}-rank0.pt")
    assert latest.exists()
    (folder / "result.json").unlink()
    run(*common, "autoresume=true")
    assert outcome(folder) == expected


@pytest.mark.long
@each_trainer
@pytest.mark.parametrize("method", ["ted", "none"])
def test_what_a_killed_writer_left_is_removed(trainer: str, method: str, run: Run, tmp_path: Path) -> None:
    common = [f"trainer={trainer}", f"pruning.method={method}", "max_duration=2ep"]
    run(*common)
    folder = tmp_path / "run"
    before = sorted(contents(folder))
    (folder / "result.json").unlink()
    for name in (".result.json.0123456789abcdef.tmp", "checkpoints/.ep1-ba23.pt.0123456789abcdef.tmp"):
        (folder / name).write_bytes(b"half")
    run(*common, "autoresume=true")
    assert sorted(contents(folder)) == before


def flipped(data: bytes) -> bytes:
    """With the bits of one byte of a record of the other value."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]


@pytest.mark.long
@each_trainer
def test_a_damaged_checkpoint_is_refused_by_name(trainer: str, run: Run, tmp_path: Path) -> None:
    expected = run(f"trainer={trainer}")
    folder = tmp_path / "run"
    (folder / "result.json").unlink()
    checkpoints = {int(path.name[2]): path for path in (folder / "checkpoints").glob("ep*")}
    newest, second = checkpoints[3].read_bytes(), checkpoints[2].read_bytes()
    before = contents(folder)
    for damaged, told in (
        (flipped(newest), "is damaged: the checksum of "),
        (newest[:-1000], "is cut off or damaged"),
        (b"", "is empty, and no checkpoint"),
    ):
        checkpoints[3].write_bytes(damaged)
        fix = f"autoresume=false load_path={checkpoints[2]}"
        with pytest.raises(ConfigError, match=f"{checkpoints[3]} {told}.*{fix}"):
            run(f"trainer={trainer}", "autoresume=true")
    checkpoints[2].write_bytes(flipped(second))  # the one before it is named then
    with pytest.raises(ConfigError, match=f"load_path={checkpoints[1]}"):
        run(f"trainer={trainer}", "autoresume=true")
    for epoch, data in ((3, newest), (2, second)):
        checkpoints[epoch].write_bytes(data)
    assert contents(folder) == before
    checkpoints[3].write_bytes(flipped(newest))
    assert run(f"trainer={trainer}", f"load_path={checkpoints[2]}").metrics == expected.metrics


@pytest.mark.quick("composer")
@each_trainer
def test_a_file_that_is_no_checkpoint_is_refused(trainer: str, run: Run) -> None:
    with pytest.raises(ConfigError, match=r"quickstart.yaml is no checkpoint: torch writes files of another kind; "):
        run(f"trainer={trainer}", f"load_path={QUICKSTART}")


@pytest.mark.long
def test_a_run_that_died_before_its_first_checkpoint_begins_again(run: Run, tmp_path: Path) -> None:
    expected = run("trainer=loop")
    folder = tmp_path / "run"
    shutil.rmtree(folder / "checkpoints")
    (folder / "result.json").unlink()
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**state, "finished": False, "epochs": state["epochs"][:1]}))
    with pytest.warns(UserWarning, match=r"was stopped after 1 of 3 epochs.*begins again"):
        assert run("trainer=loop", "autoresume=true").metrics == expected.metrics


@pytest.mark.long
def test_a_longer_run_that_is_cut_off_is_not_finished(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there is the result of the shorter one."""
    from ted_stream.pipelines.training.loop_host import Host

    run("trainer=loop")
    step = Host._train
    with monkeypatch.context() as patched:

        def fail(self: Host, batch: Any) -> None:
            if self.epoch == 4:
                raise KeyboardInterrupt
            step(self, batch)

        patched.setattr(Host, "_train", fail)
        with pytest.raises(KeyboardInterrupt):
            run("trainer=loop", "max_duration=5ep", "autoresume=true")
    assert run("trainer=loop", "max_duration=5ep", "autoresume=true").epochs == 5


@pytest.mark.long
@each_trainer
@pytest.mark.parametrize("method", ["ted", "none"])
def test_a_run_does_not_end_before_it_goes_on(trainer: str, method: str, run: Run, tmp_path: Path) -> None:
    common = [f"trainer={trainer}", f"pruning.method={method}"]
    run(*common)
    for name in (
        "result.json",
        "config.yaml",
    ):  # as if it had died at its very end; and what tells what it was begun for
        (tmp_path / "run" / name).unlink()
    before = contents(tmp_path / "run")
    message = r"checkpoint (was made )?after (3 epochs|3ep|69ba), but .* is to end after (2|2ep|46ba)[:;] "
    with pytest.raises(ValueError, match=message):
        run(*common, "autoresume=true", "max_duration=2ep")
    after = contents(tmp_path / "run")
    assert after.pop("config.yaml")
    assert after == before


@pytest.mark.long
def test_two_jobs_in_one_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that may overwrite does not, while the other is at work."""
    from ted_stream.engine import run_folder

    monkeypatch.setattr(run_folder, "_ORPHANS", 0.1)
    code = (
        "import sys; from ted_stream.engine.run_folder import RunLock; lock = RunLock(sys.argv[1], what='a test'); "
        "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    run("trainer=loop", "pruning.method=none")
    before = contents(tmp_path / "run")
    assert before.pop(".run.lock") == b""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for method in ("none", "random"):
            message = rf"in use by a job that is at work \(a test, process {other.pid} on "
            with pytest.raises(RuntimeError, match=message):
                run("trainer=loop", f"pruning.method={method}", "overwrite=true", "max_duration=2ep")
        other.kill()
    after = contents(tmp_path / "run")
    assert after.pop(".run.lock").startswith(b"a test")  # it says nothing while nobody holds the lock
    assert after == before
    run("trainer=loop", "pruning.method=none", "overwrite=true")

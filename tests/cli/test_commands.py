import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.cli.show import console, let_one_speak, show_arms, show_epochs
from ted_stream.pipelines.training.compare import Arm
from ted_stream.pipelines.training.results import Result

runner = CliRunner()
QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


def run(*arguments: str):
    return runner.invoke(app, list(arguments))


@pytest.mark.parametrize("command", [(), ("train",), ("compare",), ("prepare",), ("prepare", "instructions")])
def test_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    ("world", "speaks"),
    [
        ({}, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
        ({"RANK": "1"}, True),  # some clusters number all that they start
        ({"WORLD_SIZE": "1", "RANK": "0"}, True),
    ],
)
def test_of_several_ranks_one_speaks(
    world: dict[str, str], speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "quiet", False)  # restored at the end
    let_one_speak()
    console.print("what all ranks know")
    assert ("what all ranks know" in capsys.readouterr().out) == speaks


def test_help_needs_no_heavy_import():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from ted_stream.cli.commands import app\n"
        "assert CliRunner().invoke(app, ['prepare', 'cifar10', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'composer', 'streaming', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prepare_and_refuse(tmp_path):
    out = str(tmp_path / "digits")
    assert "1,437 train" in run("prepare", "digits", "--out", out).output
    again = run("prepare", "digits", "--out", out)
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    assert run("prepare", "digits", "--out", out, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--out", ""), "--out is empty, or the working folder; name the folder"),
        (
            ("--out", "{}/file/digits"),
            "/file: File exists. Check the path, that its parents are folders",
        ),
    ],
)
def test_a_place_where_no_dataset_can_be(arguments, told, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("prepare", "digits", *(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert told in " ".join(result.output.split())


def test_a_seed_that_is_none():
    result = run("prepare", "digits", "--seed", "-1")
    assert result.exit_code == 2
    assert "--seed" in result.output


def test_errors_are_one_message(tmp_path):
    result = run("train", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert result.output.startswith("Error: no config file")
    assert "Traceback" not in result.output
    shown = run("--traceback", "train", str(tmp_path / "none.yaml"))
    assert isinstance(shown.exception, FileNotFoundError)


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("run_name: x\npruning:\n  prune_ration: 0.5\n")
    result = run("train", str(config))
    assert result.exit_code == 1
    assert "did you mean pruning.prune_ratio?" in result.output


def test_train_shows_one_table(tmp_path):
    data = str(tmp_path / "digits")
    run("prepare", "digits", "--out", data)
    overrides = [f"data.path={data}", f"folder={tmp_path / 'run'}", "max_duration=2ep", "data.num_workers=0"]
    result = run("train", QUICKSTART, *overrides, "model.channels=[4]")
    assert result.exit_code == 0, result.output
    for words in ("test accuracy", "samples forwarded", "planned", "skip-lists:", "manifest:"):
        assert words in result.output


@pytest.mark.long
def test_compare_shows_a_saving_that_is_decided_as_it_goes(tmp_path):
    data = str(tmp_path / "digits")
    run("prepare", "digits", "--out", data)
    overrides = [f"data.path={data}", f"folder={tmp_path / 'run'}", "max_duration=2ep", "data.num_workers=0"]
    result = run("compare", QUICKSTART, *overrides, "model.channels=[4]", "--methods", "none,infobatch", "--seeds", "1")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│ ")]
    assert [row.split("│")[4].strip() for row in rows if "%" in row] == ["0.0000", "as it goes"]
    begun = [line for line in result.output.splitlines() if line.startswith("Run ")]
    assert begun == ["Run 1 of 2: none, seed 0", "Run 2 of 2: infobatch, seed 0"]


def test_compare_refuses_progress_that_one_method_cannot_foretell_before_it_trains(tmp_path):
    data = str(tmp_path / "digits")
    run("prepare", "digits", "--out", data)
    overrides = [f"data.path={data}", f"folder={tmp_path / 'run'}", "pruning.progress=samples"]
    result = run("compare", QUICKSTART, *overrides, "--methods", "none,ted,infobatch", "--seeds", "1")
    assert result.exit_code != 0
    told = " ".join(result.output.split())
    assert "progress is 'samples', but InfoBatch" in told
    assert "progress='epochs'" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "without", "extra"),
    [
        (("index", "x-{0..1}.tar"), "webdataset", "webdataset"),
        (("prepare", "digits"), "sklearn", "pipelines"),
        (("train", QUICKSTART), "omegaconf", "pipelines"),
        (("train", QUICKSTART), "composer", "composer"),
        (("bench", "boundary"), "composer", "composer"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(arguments, without, extra, tmp_path):
    code = f"import sys; sys.modules[{without!r}] = None; from ted_stream.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = " ".join(done.stderr.split())
    assert told.startswith(f"Error: {without} is not installed")
    assert f'pip install "ted-stream[{extra}]"' in told


def test_a_run_goes_on_where_nobody_reads_its_lines_any_more(monkeypatch):
    """As behind ``2>&1 | head``; the other ranks would wait for the one that writes them."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with show_epochs():
        logging.getLogger("ted_stream").info("a line")


def test_differences_from_the_baselines_are_paired_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: of 0.02, 0.01 and 0.03 the mean is 0.02, and half of the interval 0.01 · 4.303 / √3."""
    accuracies = {"shorter": (0.5, 0.7, 0.6), "random": (0.6, 0.7, 0.5), "ted": (0.52, 0.71, 0.63)}
    counts = {"epochs": 4, "samples": 10, "forwarded": 20, "save_ratio": 0.5, "planned_save_ratio": 0.5}
    places = {"folder": "runs", "skip_lists": None, "manifest": None, "asked": ""}
    arms = []
    for method, of_seeds in accuracies.items():
        names = {"run_name": method, "trainer": "loop", "method": method, "seconds": 1.0, "wall_seconds": 1.0}
        results = [
            Result(**names, **counts, **places, seed=seed, metrics={"MulticlassAccuracy": accuracy})
            for seed, accuracy in enumerate(of_seeds)
        ]
        arms.append(Arm(method=method, results=tuple(results)))
    show_arms("three", arms)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    ted = [row for row in rows if row and row[0] == "ted"][-1]
    assert ted[1:] == ["+2.00 ± 2.48 %", "+2.00 ± 26.17 %"]
    random = [row for row in rows if row and row[0] == "random"][-1]
    assert random[1:] == ["+0.00 ± 24.84 %", ""]

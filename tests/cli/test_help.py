"""What the commands say of themselves: help with an example, settings, version, completion."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf
from typer.testing import CliRunner

import ted_stream
from ted_stream.cli import main
from ted_stream.cli.commands import app
from ted_stream.cli.settings_help import scoring_settings, training_settings
from ted_stream.methods import METHODS
from ted_stream.pipelines.training.score_settings import Choice
from ted_stream.pipelines.training.settings import CHOICES, Settings, settings_of


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if path:
        yield path, command


COMMANDS = dict(commands(typer.main.get_command(app)))
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def test_all_commands_are_seen() -> None:
    assert {("train",), ("prepare",), ("prepare", "digits"), ("bench", "methods"), ("export",)} <= COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_an_example_that_it_takes(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    _, found, example = (command.help or "").partition("For example: ")
    assert found, f"the help of {path} has no example"
    words = shlex.split(example)
    assert words[: 1 + len(path)] == ["ted-stream", *path]
    command.make_context("ted-stream", words[1 + len(path) :])  # refuses options and values that it does not know


def test_the_settings_in_the_help_are_those_of_the_schema() -> None:
    schema: Any = OmegaConf.to_container(OmegaConf.structured(Settings))
    of_methods = {name for method in METHODS for name in settings_of(method)}
    expected: dict[str, Any] = {}
    for name, value in schema.items():
        options = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        expected |= {key: inner for key, inner in options.items() if key.removeprefix("pruning.") not in of_methods}
    assert {setting.name for setting in training_settings()} == expected.keys()
    for setting in training_settings():
        value = expected[setting.name]
        shown = {None: "null", True: "true", False: "false", "???": ""}
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert setting.default == (str(value) if is_number else shown.get(value, str(value))), setting
        assert setting.told.endswith("."), f"{setting.name} is not told of"
    assert {setting.name: setting.default for setting in scoring_settings()} == {
        name: "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in vars(Choice()).items()
    }


def test_the_settings_of_choices_say_whose_they_are() -> None:
    told = {setting.name: setting.told for setting in training_settings()}
    for section, choices in CHOICES.items():
        assert f"One of {', '.join(choices)}." in told[f"{section}.name"]
    assert told["model.n_head"] == "Attention heads. Of gpt, bert."
    assert told["optimizer.momentum"].endswith("Of sgd, lars.")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ("data.batch_size", "128", "Samples per training step", "ted-stream methods ted")),
        ("compare", ("optimizer.lr", "required")),
        ("score", ("keep_vectors", "false", "ted-stream train --help")),
    ],
)
def test_the_help_lists_the_settings(command: str, words: tuple[str, ...]) -> None:
    told = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    for word in words:
        assert word in told


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from ted_stream.cli.commands import app\n"
        "for words in (['prepare', 'cifar10', '--help'], ['train', '--help'], ['score', '--help'], ['--version']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
        "heavy = {'torch', 'composer', 'streaming', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version() -> None:
    assert ted_stream.__version__ == version("ted-stream")
    result = CliRunner().invoke(app, ["--version"])
    assert result.output == f"{ted_stream.__version__}\n"
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("ted-stream tr", ["train"]), ("ted-stream bench bo", ["boundary"]), ("ted-stream export --to dat", ["datacomp"])],
)
def test_bash_completes_what_is_typed(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the function does that `--install-completion` writes for bash."""
    monkeypatch.setenv("_TED_STREAM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    monkeypatch.setattr(sys, "argv", ["ted-stream"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == offered


def test_completion_is_installed_for_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    (tmp_path / ".bashrc").write_text("alias l=ls\n")
    result = CliRunner().invoke(app, ["--install-completion", "bash"], prog_name="ted-stream")
    assert result.exit_code == 0, result.output
    rc = (tmp_path / ".bashrc").read_text()
    assert rc.startswith("alias l=ls\n")
    (script,) = tmp_path.glob(".bash_completions/*")
    assert str(script) in rc
    assert "_TED_STREAM_COMPLETE=complete_bash" in script.read_text()

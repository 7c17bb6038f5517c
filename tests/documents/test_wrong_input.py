"""What the commands' README says that they print for wrong input, row by row."""

import errno
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import ROOT, text_of
from run_folders import random_masks, write_run
from typer.testing import CliRunner

from ted_stream import PrunedStreamingDataset
from ted_stream.cli.commands import app
from ted_stream.export import export_run
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.training import train

TABLE = text_of("ted_stream/cli/README.md").partition("## Wrong input\n")[2]
ROWS = re.findall(r"^\|[^|`]*\| `(ted-stream [^`]*)`(.*?) \| (.*?) \| (\d+) \|$", TABLE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README describes."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "configs").symlink_to(ROOT / "configs")
    prepare_digits(folder / "data/digits")
    prepare_digits(folder / "data/other", seed=1)
    layout = PrunedStreamingDataset(local=str(folder / "data/digits/train"), batch_size=8).layout
    scores = np.random.default_rng(0).normal(size=layout.num_samples).astype(np.float32)
    write_run(folder / "runs/a", layout, random_masks(layout.num_samples, 3), scores=scores)
    export_run(folder / "runs/a", folder / "kept.parquet")
    (folder / "runs/empty").mkdir()
    (folder / "locked").mkdir(mode=0o555)
    return folder


def plain(text: str) -> str:
    """Without the boxes and line breaks of a terminal."""
    return " ".join(re.sub("[─━│╭╮╰╯]", " ", text).split())


def pattern(cell: str) -> str:
    """What is cut may be anything."""
    return ".*".join(re.escape(part.strip()) for part in cell.strip("`").split("…"))


def refuse_what_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does for all users but its own."""
    make = os.mkdir

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).parent.name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)


def test_all_rows_are_found() -> None:
    assert len(ROWS) == len(re.findall(r"^\| .*ted-stream", TABLE, flags=re.MULTILINE)) > 20


@pytest.mark.parametrize(("command", "then", "told", "status"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row(
    command: str, then: str, told: str, status: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    refuse_what_is_locked(monkeypatch)
    if then:
        assert then == ", then Ctrl-C"

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(train, "train", interrupted)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == int(status), done.output
    output = plain(re.sub(r"^index ━.*$", "", done.output, flags=re.MULTILINE))
    assert re.fullmatch("" if told == "nothing" else pattern(told), output), output

"""``ted-stream score`` of prompts and answers: what is kept, what is left out, and the texts of both."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scoring import prepared_pairs, score_text
from streaming import StreamingDataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.engine.generators import seed_generators
from ted_stream.export import read_scores
from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.pipelines.corpora.prepared import Description, read_description
from ted_stream.pipelines.corpora.tokens import bos_id_of, load_tokenizer
from ted_stream.pipelines.training import surrogates
from ted_stream.pipelines.training.settings import Model, load_settings
from ted_stream.pipelines.training.tasks import Task, build_task
from ted_stream.skip_list import read_skip_list

N = 32
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_pairs(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def without_bos(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts and answers by a tokenizer that begins sequences with nothing."""
    folder, corpus = tmp_path_factory.mktemp("plain"), text.parent / "train.jsonl"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(text / "tokenizer" / "tokenizer.json"), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    prepare_instructions(folder / "data", corpus, test_fraction=0.2, tokenizer=str(folder / "tokenizer"))
    return folder / "data"


def given_task(options: Model, description: Description, *, is_trained: bool = True) -> Task:
    """Of a model to which it matters what comes before a token, as it does not yet where weights are small."""
    task = build_task(options, description, is_trained=is_trained)
    for parameter in task.network.parameters():
        parameter.data *= 8
    return task


@pytest.fixture(autouse=True)
def given_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "build_task", given_task)


def ratios_of(data: Path, run: Path) -> list[float]:
    """IFDs under the model as it is given, sample by sample; NaN of an answer of which nothing is known alone."""
    settings = load_settings(run / "config.yaml")
    seed_generators(settings.seed)
    network: Any = given_task(settings.model, read_description(data)).network.eval()

    @torch.no_grad()
    def losses(ids: list[int]) -> list[float]:
        logits = network(input_ids=torch.tensor([ids])).logits[0, :-1]
        return cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()

    samples, found = StreamingDataset(local=str(data / "train"), batch_size=1), []
    for sample in (samples[at] for at in range(N)):
        ids, start = sample["input_ids"].tolist(), int((sample["labels"] == -100).sum())
        begun = load_tokenizer(str(data / "tokenizer")).bos_token_id is not None
        given, alone = losses(ids)[start - 1 :], losses([*ids[:1] * begun, *ids[start:]])
        given = given if begun else given[1:]
        assert len(given) == len(alone)
        found.append(float(np.mean(given) / np.mean(alone)) if alone else math.nan)
    return found


def test_the_token_that_begins_a_sequence(text: Path, without_bos: Path) -> None:
    assert bos_id_of(text) == load_tokenizer(str(text / "tokenizer")).bos_token_id is not None
    assert bos_id_of(without_bos) is None


@pytest.mark.quick("text")
@pytest.mark.parametrize("which", ["text", "without_bos"])
def test_the_highest_below_one_are_kept(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data, run = request.getfixturevalue(which), tmp_path / "run"
    result = score_text(data, run, "method=ifd", "train=false", "prune_ratio=0.93", "data.eval_batch_size=5")
    assert result.exit_code == 0, result.output
    found, scores = json.loads((run / "score.json").read_text()), read_scores(run / "scores.parquet")
    expected = np.array(ratios_of(data, run))
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-5)
    below = np.flatnonzero(expected < 1)
    assert np.abs(expected - 1).min() > 1e-4  # of every sample it is clear on which side it is
    assert 3 < len(below) < N
    kept = np.flatnonzero(read_skip_list(run / "skip_list.parquet").keep_mask())
    assert set(kept) == set(below[np.argsort(expected[below])[-3:]])
    left = N - len(below)
    assert (found["kept"], found["scored"], found["left_out"], found["epochs"], found["seeds"]) == (3, N, left, 0, [])
    assert found["note"] == scores.provenance["left out"] == f"{left} with an IFD of 1 or more, 0 without one"
    told = " ".join(result.output.split())
    assert f"{left}: {left} with an IFD of 1 or more, 0 without one" in told
    assert "none trained" in told


@pytest.mark.long
def test_more_than_there_are_is_refused(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused = score_text(text, run, "method=ifd", "train=false", "prune_ratio=0", "save_interval=1ep")
    assert refused.exit_code == 1
    scores = read_scores(run / "scores.parquet").scores
    most = int((scores < 1).sum())
    told = " ".join(refused.output.split())
    assert f"prune_ratio is 0.0, which keeps 32 of 32 samples, but {most} can be kept: {N - most} with an IFD" in told
    ratio = told.rpartition("at least ")[2].rstrip(".")
    assert not (run / "skip_list.parquet").exists()
    again = ["method=ifd", "train=false", f"prune_ratio={ratio}", "save_interval=1ep", "autoresume=true"]
    done = score_text(text, run, *again)
    assert done.exit_code == 0, done.output
    assert read_skip_list(run / "skip_list.parquet").keep_mask().tolist() == (scores < 1).tolist()
    trained = score_text(text, run, *again[:1], *again[2:])
    assert trained.exit_code == 1
    assert "train is True, but the scoring run in" in " ".join(trained.output.split())


def test_the_texts_of_samples_are_shown(text: Path, without_bos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = score_text(text, run, "method=reference_loss", "keep=lowest", "train=false", "prune_ratio=0.75")
    assert done.exit_code == 0, done.output
    command = ["inspect", str(run), "--text", "--number", str(N)]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    lines = [json.loads(line) for line in (text.parent / "train.jsonl").read_text().splitlines()]
    scores = read_scores(run / "scores.parquet").scores
    assert [one["score"] for one in found["highest"]] == sorted(scores.tolist(), reverse=True)
    assert [one["kept"] for one in found["highest"]] == [True] * 8 + [False] * (N - 8)
    for one in found["highest"]:
        line = lines[int(one["key"]) - 1]
        assert one["file"] == "train.jsonl"
        assert one["text"] == f"{line['prompt']}\n{line['response']}"
    tables = CliRunner().invoke(app, [*command[:3], "--number", "1"])
    assert tables.exit_code == 0, tables.output
    for words in ("train.jsonl", "Count to", "kept", "text"):
        assert words in tables.output
    scores_file = CliRunner().invoke(app, ["inspect", str(run / "scores.parquet"), "--text", "--json"])
    assert json.loads(scores_file.stdout)["lowest"][0]["text"].startswith("Count to")
    for arguments, message in (
        ([str(run), "--text", "--data", str(without_bos)], f"{without_bos} is dataset "),
        ([str(run / "skip_list.parquet"), "--text"], "names no samples whose text could be shown"),
        ([str(run), "--text", "--number", "0"], "names no samples whose text could be shown"),
        ([str(run), str(run), "--text"], "--text is of samples, of which a comparison names none"),
    ):
        refused = CliRunner().invoke(app, ["inspect", *arguments])
        assert refused.exit_code == 1
        assert message in " ".join(refused.output.split())


@pytest.mark.long
@pytest.mark.parametrize("method", ["ifd", "reference_loss"])
def test_with_a_model_that_is_trained_first(method: str, text: Path, tmp_path: Path) -> None:
    done = score_text(text, tmp_path / "run", f"method={method}", "prune_ratio=0.9", "max_duration=10ep")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "run" / "score.json").read_text())
    assert (found["epochs"], found["kept"], found["seeds"]) == (10, 4, [0])
    assert found["cost"] > 0


@pytest.mark.long
def test_with_the_model_of_a_checkpoint(text: Path, tmp_path: Path) -> None:
    run, trained = tmp_path / "run", tmp_path / "trained"
    assert score_text(text, trained, "method=reference_loss", "save_interval=2ep").exit_code == 0
    (checkpoint,) = (trained / "checkpoints").glob("ep2-*.pt")
    given = [f"load_path={checkpoint}", "train=false"]
    done = score_text(text, run, "method=reference_loss", *given)
    assert done.exit_code == 0, done.output
    both = [read_scores(folder / "scores.parquet").scores.tolist() for folder in (trained, run)]
    assert both[0] == both[1]
    assert json.loads((run / "score.json").read_text())["epochs"] == 2
    again = score_text(text, run, "method=reference_loss", *given)
    assert "holds an earlier run" in " ".join(again.output.split())

"""Reference losses: folds, a holdout, a checkpoint; and training on what can still be learnt by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imagenet_sources import write_folders
from scoring import QUICKSTART, SMALL, Command, command_on
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from ted_stream.cli.commands import app
from ted_stream.export.scores import Scores, read_scores, write_scores
from ted_stream.pipelines.corpora.digits import prepare_digits
from ted_stream.pipelines.corpora.imagenet import prepare_imagenet
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.datasets import build_loaders
from ted_stream.pipelines.training.reference import Reference
from ted_stream.pipelines.training.results import Result
from ted_stream.pipelines.training.settings import load_settings
from ted_stream.pipelines.training.tasks import build_task
from ted_stream.pipelines.training.train import train
from ted_stream.skip_list import read_skip_list
from ted_stream.testing.methods import has_plain_settings, rebuilds_itself, refuses_wrong_settings

N = 1437


@pytest.fixture
def score(digits: Path, tmp_path: Path) -> Command:
    return command_on(digits, tmp_path)


@pytest.fixture
def trained(digits: Path, tmp_path: Path) -> Path:
    """A checkpoint of the loop."""
    places = [f"data.path={digits}", f"folder={tmp_path / 'trained'}", "trainer=loop", "save_interval=2ep"]
    train(load_settings(QUICKSTART, [*SMALL, *places]))
    return next((tmp_path / "trained" / "checkpoints").glob("ep2-*.pt"))


def losses_of(path: Path, digits: Path) -> np.ndarray:
    """Every sample's loss under the network of a checkpoint, computed here."""
    settings = load_settings(QUICKSTART, [*SMALL, f"data.path={digits}"])
    description = read_description(digits)
    network, loaders = build_task(settings.model, description).network, build_loaders(settings, description, ranks=1)
    network.load_state_dict(torch.load(path, weights_only=True)["network"])
    network.eval()
    samples = [loaders.train_set[at] for at in range(N)]
    images, labels = torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])
    with torch.no_grad():
        logits = network(loaders.plain_transform([images, labels])[0])
        return cross_entropy(logits, labels, reduction="none").numpy()


@pytest.mark.long
def test_losses_of_a_checkpoint(score: Command, trained: Path, digits: Path, tmp_path: Path) -> None:
    expected = losses_of(trained, digits)
    for name, augment in (("run", "none"), ("augmented", "crop_flip")):
        result = score("reference", f"checkpoint={trained}", f"data.augment={augment}", name=name)
        assert result.exit_code == 0, result.output
        scores = read_scores(tmp_path / name / "scores.parquet")
        np.testing.assert_allclose(scores.scores, expected, rtol=1e-4, atol=1e-5)
        assert (scores.provenance["epochs"], scores.provenance["keeps"]) == ("2", "lowest")
        assert str(trained) in scores.provenance["method"]


@pytest.mark.long
def test_each_fold_is_scored_by_a_model_of_the_others(score: Command, digits: Path, tmp_path: Path) -> None:
    result = score("reference", "folds=3", "prune_ratio=0.5", "save_interval=2ep", "balance=as_they_are")
    assert result.exit_code == 0, result.output
    scores = read_scores(tmp_path / "run" / "scores.parquet")
    folds = Reference(folds=3).trained_on(N, seed=0)
    assert sorted(int((~fold).sum()) for fold in folds) == [479, 479, 479]
    assert (np.sum([~fold for fold in folds], axis=0) == 1).all()
    for number, fold in enumerate(folds):
        path = next((tmp_path / "run" / "surrogates" / str(number) / "checkpoints").glob("ep2-*.pt"))
        np.testing.assert_allclose(scores.scores[~fold], losses_of(path, digits)[~fold], rtol=1e-4, atol=1e-5)
    kept = read_skip_list(tmp_path / "run" / "skip_list.parquet").keep_mask()
    assert kept.sum() == 719
    assert scores.scores[kept].mean() < scores.scores[~kept].mean()


@pytest.mark.long
def test_a_holdout_has_no_losses(score: Command, tmp_path: Path) -> None:
    result = score("reference", "holdout=0.2")
    assert result.exit_code == 0, result.output
    assert "1,150 of 1,437" in result.output
    scores = read_scores(tmp_path / "run" / "scores.parquet")
    assert np.array_equal(np.isnan(scores.scores), Reference(holdout=0.2).trained_on(N, seed=0)[0])
    assert scores.labels is not None
    assert scores.labels.min() == 0


def test_its_value() -> None:
    for reference in (Reference(), Reference(holdout=0.5), Reference(checkpoint="a.pt")):
        for check in (rebuilds_itself, has_plain_settings):
            check(reference)  # pyright: ignore[reportArgumentType]
    assert Reference() == Reference(folds=2)
    refuses_wrong_settings(Reference(folds=3))  # pyright: ignore[reportArgumentType]


@pytest.mark.long
def test_a_checkpoint_of_another_model_is_refused(score: Command, trained: Path, tmp_path: Path) -> None:
    result = score("reference", f"checkpoint={trained}", "model.channels=[4, 4]")
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert "is of another model than the config's" in told
    assert "size mismatch" in told
    assert not (tmp_path / "run").exists()


def learn(digits: Path, reference: Path, folder: Path) -> Result:
    own = ["pruning.method=learnability", f"pruning.reference={reference}", "pruning.prune_ratio=0.6"]
    places = [f"data.path={digits}", f"folder={folder}", "trainer=loop"]
    return train(load_settings(QUICKSTART, [*SMALL, *places, *own, "max_duration=3ep", "pruning.annealing=0"]))


@pytest.mark.long
def test_learnability_trains_by_it(score: Command, digits: Path, tmp_path: Path) -> None:
    assert score("reference").exit_code == 0
    path = tmp_path / "run" / "scores.parquet"
    result = learn(digits, path, tmp_path / "learnt")
    assert result.save_ratio > 0.2
    lists = sorted((tmp_path / "learnt" / "skip_lists").glob("*.parquet"))
    assert [read_skip_list(one).num_kept for one in lists] == [
        record["kept"] for record in json.loads((tmp_path / "learnt" / "run.json").read_text())["epochs"]
    ]
    other = read_scores(path)
    assert other.labels is not None
    layout = read_skip_list(lists[-1]).layout
    write_scores(
        tmp_path / "turned.parquet",
        layout,
        -other.scores,
        labels=other.labels,
        provenance={"method": "reference, turned"},
    )
    learn(digits, tmp_path / "turned.parquet", tmp_path / "turned")
    turned = read_skip_list(tmp_path / "turned" / "skip_lists" / "ep0002.parquet")
    assert turned.digest != read_skip_list(lists[-1]).digest


@pytest.mark.long
def test_learnability_refuses_the_scores_of_another_dataset(score: Command, tmp_path: Path) -> None:
    assert score("reference").exit_code == 0
    prepare_digits(tmp_path / "other", size_limit=1 << 13)
    with pytest.raises(ValueError, match=r"they are of dataset .*, this one is .*; use the scores of this dataset"):
        learn(tmp_path / "other", tmp_path / "run" / "scores.parquet", tmp_path / "learnt")


def upload(folder: Path, s3: Any) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "training", f"digits/{path.relative_to(folder)}")


@pytest.mark.long
def test_folds_of_a_remote_dataset(score: Command, digits: Path, s3: Any, tmp_path: Path) -> None:
    """What a fold leaves out of training is fetched for its pass."""
    upload(digits, s3)
    remote = ["data.path=s3://training/digits", f"data.cache={tmp_path / 'cache'}"]
    for name, more in (("local", []), ("remote", remote)):
        result = score("reference", "folds=2", *more, name=name)
        assert result.exit_code == 0, result.output
    local, fetched = (read_scores(tmp_path / name / "scores.parquet") for name in ("local", "remote"))
    assert fetched.digest == local.digest


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    prepare_imagenet(root / "out", write_folders(root / "source", per_class=20, test_per_class=5), shard_size=20_000)
    return root / "out"


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_jpegs_are_scored_unaugmented(workers: int, jpegs: Path, tmp_path: Path) -> None:
    config = str(Path(QUICKSTART).with_name("imagenet_resnet50.yaml"))
    common = [
        *("data.image_size=16", "data.batch_size=16", "data.eval_batch_size=20", f"data.path={jpegs}"),
        *("model.name=convnet", "model.channels=[4, 8]", "model.channels_last=false", "pruning.method=none"),
        *("max_duration=2ep", "scheduler.milestones=[1ep]", "scheduler.warmup=5ba", "progress_bar=false"),
        *("save_interval=2ep", f"data.num_workers={workers}"),
    ]

    def run(name: str, *overrides: str) -> Scores:
        result = CliRunner().invoke(app, ["score", config, *common, f"folder={tmp_path / name}", *overrides])
        assert result.exit_code == 0, result.output
        return read_scores(tmp_path / name / "scores.parquet")

    run("trained", "method=tdds", "epochs=3", "window=3", "max_duration=3ep")
    path = next((tmp_path / "trained" / "checkpoints").glob("ep3-*.pt"))
    plain, augmented = (
        run(augment, "method=reference", f"checkpoint={path}", f"data.augment={augment}")
        for augment in ("none", "random_resized_crop")
    )
    assert augmented.digest == plain.digest
    assert plain.labels is not None
    assert np.bincount(plain.labels).tolist() == [20] * 4

from pathlib import Path

import numpy as np
import pytest
import torch

from ted_stream import PrunedStreamingDataset, SkipList
from ted_stream.engine.plan import RunPlan
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.datasets import build_loaders
from ted_stream.pipelines.training.settings import ConfigError, Settings, load_settings, replaced
from ted_stream.pipelines.training.shorter import shorter_run
from ted_stream.pipelines.training.train import check_data, train
from ted_stream.sampler import PrunedSampler
from ted_stream.skip_list import read_skip_list, write_skip_list

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def load(digits: Path, tmp_path: Path):
    def load(*overrides: str) -> Settings:
        given = [f"data.path={digits}", f"folder={tmp_path / 'run'}", "data.num_workers=0", "max_duration=3ep"]
        given += ["pruning.method=ted"]
        return load_settings(CONFIG, [*given, "data.in_memory=true", "trainer=loop", *overrides])

    return load


def test_samples_are_those_of_the_shards_by_id(load, digits: Path) -> None:
    settings = load("data.shuffle=false")
    loaders = build_loaders(settings, read_description(digits), ranks=1)
    streamed = PrunedStreamingDataset(local=str(digits / "train"), batch_size=64, shuffle=False)
    assert loaders.prunable.layout == streamed.layout
    (ids, labels), *_ = loaders.train
    images, others = loaders.plain_transform([ids, labels])
    samples = [streamed[int(at)] for at in ids]
    assert ids.tolist() == list(range(64))
    assert others.tolist() == [sample["label"] for sample in samples]
    description = read_description(digits)
    pixels = np.stack([sample["image"] for sample in samples]).astype(np.float32)
    expected = (pixels - np.float32(description.mean[0])) / np.float32(description.std[0])
    assert np.allclose(images[:, 0].numpy(), expected, atol=1e-5)


@pytest.mark.long
def test_both_trainers_make_the_same_to_the_bit(load, tmp_path: Path) -> None:
    for method in ("ted", "none"):
        common = [f"pruning.method={method}", "data.augment=crop_flip", "pruning.annealing=0"]
        names = ("loop", "composer")
        results = [train(load(*common, f"trainer={name}", f"folder={tmp_path / method / name}")) for name in names]
        assert results[0].metrics == results[1].metrics
        assert results[0].forwarded == results[1].forwarded
        if method == "ted":
            lists = [(tmp_path / method / name / "skip_lists" / "ep0002.parquet") for name in names]
            first, second = (read_skip_list(path).kept_ids() for path in lists)
            assert np.array_equal(first, second)


@pytest.mark.long
def test_its_skip_lists_serve_the_streamed_dataset(load, digits: Path, tmp_path: Path) -> None:
    train(load("pruning.method=random", "pruning.annealing=0"))
    path = tmp_path / "run" / "skip_lists" / "ep0002.parquet"
    streamed = PrunedStreamingDataset(local=str(digits / "train"), batch_size=64, skip_list=str(path))
    assert streamed.layout == PrunedSampler(range(1437), layout=streamed.layout).layout
    kept = read_skip_list(path).num_kept
    assert 0 < kept < 1437
    again = train(load("pruning.method=none", f"data.skip_list={path}", f"folder={tmp_path / 'again'}"))
    assert again.forwarded == 3 * kept


@pytest.mark.long
def test_resumes_to_the_bit(load, tmp_path: Path) -> None:
    common = ["pruning.method=ted", "data.augment=crop_flip", "save_interval=10ba", "pruning.annealing=0"]
    whole = train(load(*common))
    checkpoints = tmp_path / "run" / "checkpoints"
    middle = next(checkpoints.glob("ep1-ba*.pt"))
    lists = {path.name: read_skip_list(path).digest for path in (tmp_path / "run" / "skip_lists").iterdir()}
    again = train(load(*common, f"load_path={middle}"))
    assert again.metrics == whole.metrics
    assert lists == {path.name: read_skip_list(path).digest for path in (tmp_path / "run" / "skip_lists").iterdir()}


@pytest.mark.long
def test_what_is_left_for_a_last_batch_may_be_left_out(load) -> None:
    """In pruned epochs too, and in the shorter run that is as long."""
    settings = load("data.drop_last=true", "pruning.method=random", "pruning.prune_ratio=0.5")
    assert settings.pruning.value is not None
    result = train(settings)
    plan = RunPlan(method=settings.pruning.value, num_samples=1437, epochs=3)
    batches = [count // 64 for count in plan.forecast({})]
    assert result.forwarded == 64 * sum(batches) < sum(plan.forecast({}))
    full = 1437 // 64 * 64
    assert result.save_ratio == 1 - result.forwarded / (3 * full)
    changes = shorter_run(settings, settings.pruning.value, samples=1437)
    assert changes["max_duration"] == f"{sum(batches)}ba"
    shorter = train(replaced(settings, {**changes, "overwrite": True}))
    assert shorter.forwarded == result.forwarded
    whole = train(replaced(settings, {"pruning.method": "none", "overwrite": True}))
    assert (whole.forwarded, whole.save_ratio) == (3 * full, 0.0)  # nothing is saved of what nobody trains on


@pytest.mark.long
def test_so_many_batches_end_where_they_are_said_to(load) -> None:
    result = train(load("pruning.method=none", "max_duration=30ba", "data.batch_size=64"))
    assert result.epochs == 2  # of 23 batches each, the last of 29 samples
    assert result.forwarded == 1437 + 7 * 64
    other = train(load("pruning.method=none", "max_duration=30ba", "trainer=composer", "overwrite=true"))
    assert (other.forwarded, other.metrics) == (result.forwarded, result.metrics)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.num_workers=2", r"data\.num_workers is 2, but with data\.in_memory nothing is read"),
        ("data.path=s3://bucket/digits", r"s3://bucket/digits is remote; copy it to a local disk"),
    ],
)
def test_what_cannot_be_held_is_refused(load, digits: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_data(load(override, "data.cache=/tmp/cache"), read_description(digits), 1)


def test_only_what_is_held_may_lose_its_last_batch(load, digits: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.drop_last needs data\.in_memory=true"):
        check_data(load("data.in_memory=false", "data.drop_last=true"), read_description(digits), 1)


def test_a_layout_of_other_samples_is_refused(digits: Path) -> None:
    layout = PrunedStreamingDataset(local=str(digits / "train"), batch_size=64).layout
    with pytest.raises(ValueError, match="The layout has 1437 samples, the range 1436"):
        PrunedSampler(range(1436), layout=layout)


def test_a_fixed_list_with_weights_is_refused(load, digits: Path, tmp_path: Path) -> None:
    layout = PrunedStreamingDataset(local=str(digits / "train"), batch_size=64).layout
    keep = np.arange(1437) % 2 == 0
    weights = torch.linspace(1, 2, int(keep.sum())).numpy()
    names = {"epoch": 0, "method": "made up", "run": "test"}
    skip_list = SkipList.from_keep_mask(layout, keep, keep_ratio=0.5, weights=weights, **names)
    write_skip_list(skip_list, tmp_path / "weighted.parquet")
    with pytest.raises(ValueError, match="weights"):
        build_loaders(load(f"data.skip_list={tmp_path / 'weighted.parquet'}"), read_description(digits), ranks=1)

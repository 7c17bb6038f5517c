"""What a YAML of llm-foundry gets for its section `algorithms`, as far as it can be seen without llm-foundry."""

import re
from importlib.metadata import entry_points

import pytest
from composer.core import Algorithm

from ted_stream import TED, Composed, DataPruning, RandomPruning
from ted_stream.methods import METHODS
from ted_stream.trainers.foundry.algorithms import ALGORITHMS
from ted_stream.trainers.foundry.config import read_prunable


def test_every_method_has_an_entry_point() -> None:
    found = {point.name: point.load() for point in entry_points(group="llmfoundry_algorithms")}
    assert found == ALGORITHMS
    assert len(ALGORITHMS) == len(METHODS)
    for algorithm in ALGORITHMS.values():  # what llm-foundry asks for
        assert isinstance(algorithm, type)
        assert issubclass(algorithm, Algorithm)


def test_a_section_is_a_data_pruning_with_the_settings_of_both() -> None:
    made = ALGORITHMS["ted"](prune_ratio=0.3, annealing=0.0, folder="runs/{run_name}", seed=7)
    assert type(made) is DataPruning  # by which Composer finds its state in a checkpoint, whatever the method
    assert made.method == TED(0.3, annealing=0.0)
    assert (made.folder, made.seed) == ("runs/{run_name}", 7)
    assert ALGORITHMS["random_pruning"](prune_ratio=0.5).method == RandomPruning(0.5)
    assert ALGORITHMS["composed_pruning"](prune_ratio=0.5).method == Composed(0.5)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        (
            {"prune_ratoi": 0.3},
            ValueError,
            r"algorithms.ted.prune_ratoi: .* did you mean prune_ratio",
        ),
        (
            {"prune_ratio": 0.3, "method": "x"},
            ValueError,
            r"ted.method: there is no .* prune_ratio, .* folder",
        ),
        ({}, ValueError, r"algorithms.ted has no value for prune_ratio. Give one: ted: {prune_ratio: …}"),
        ({"prune_ratio": 1.3}, ValueError, r"prune_ratio is 1.3, but it must lie in \[0, 1\)"),
        ({"prune_ratio": "a third"}, TypeError, r"prune_ratio is 'a third'"),
        ({"prune_ratio": 0.3, "seed": 0.5}, TypeError, r"seed is 0.5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        ALGORITHMS["ted"](**settings)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(ImportError, match=re.escape("'random'")):
        exec("from ted_stream.trainers.foundry.algorithms import random")


@pytest.mark.parametrize(("loader", "pruned"), [("finetuning", "pruned_finetuning"), ("text", "pruned_text")])
def test_the_training_data_of_a_config_with_pruning_are_prunable(loader: str, pruned: str) -> None:
    data = {"name": loader, "dataset": {"local": "x"}}
    config = {"algorithms": {"gradient_clipping": {}, "ted": {}}, "train_loader": data, "eval_loader": data}
    found = read_prunable(config)
    assert found == {**config, "train_loader": {**data, "name": pruned}}
    assert data["name"] == loader


@pytest.mark.parametrize(
    "config",
    [
        {"train_loader": {"name": "finetuning"}},
        {"train_loader": {"name": "finetuning"}, "algorithms": None},
        {"train_loader": {"name": "finetuning"}, "algorithms": {"gradient_clipping": {}}},
        {"train_loader": {"name": "contrastive_pairs"}, "algorithms": {"ted": {}}},
        {"eval_loader": {"name": "finetuning"}},
    ],
)
def test_other_configs_are_left_as_they_are(config: dict[str, object]) -> None:
    assert read_prunable(config) is config

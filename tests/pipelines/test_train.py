import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from ted_stream.pipelines.corpora.instructions import prepare_instructions
from ted_stream.pipelines.training.compare import compare
from ted_stream.pipelines.training.settings import ConfigError, load_settings
from ted_stream.pipelines.training.train import train

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["max_duration=3ep", "data.num_workers=0", "model.channels=[8, 16]", "pruning.annealing=0"]
SMALL += ["pruning.method=ted"]


@pytest.fixture
def settings(digits, tmp_path):
    def load(*overrides: str):
        places = [f"data.path={digits}", f"folder={tmp_path / 'run'}"]
        return load_settings(CONFIGS / "quickstart.yaml", [*SMALL, *places, *overrides])

    return load


COMPARED = ("none", "shorter", "importance_sampling", "infobatch", "random", "rcap", "ted")


@pytest.mark.long
def test_compare_runs_every_method_with_every_seed(settings, tmp_path):
    told = []
    # Settings that one of the methods lacks are left to the others.
    arms = compare(
        settings("pruning.site=output"),
        COMPARED,
        [0],
        begins=lambda method, seed: told.append((method, seed)),
        finished=lambda result: told.append(result.method),
    )
    assert [arm.method for arm in arms] == list(COMPARED)
    assert told == [entry for method in COMPARED for entry in ((method, 0), method)]
    results = {arm.method: arm.results[0] for arm in arms}
    full = results["none"]
    assert (full.forwarded, full.save_ratio, full.planned_save_ratio) == (3 * 1437, 0.0, 0.0)
    assert full.skip_lists is None
    shorter = results["shorter"]
    records = json.loads((Path(results["random"].folder) / "run.json").read_text())["epochs"]
    steps = sum(-(-record["kept"] // 64) for record in records[1:])  # after an epoch on everything
    assert shorter.forwarded == 1437 + steps * 64
    assert shorter.save_ratio == 1 - shorter.forwarded / (3 * 1437)
    assert (shorter.method, shorter.skip_lists) == ("shorter", None)
    pruned = [result for method, result in results.items() if method not in ("none", "shorter")]
    for result in pruned:
        assert result.save_ratio > (0.1 if result.method == "infobatch" else 0.3)
        assert result.skip_lists is not None
        assert result.manifest is not None
        assert len(list(Path(result.skip_lists).glob("*.parquet"))) == 3
        assert Path(result.manifest).is_file()
    assert results["infobatch"].planned_save_ratio is None
    assert arms[list(COMPARED).index("infobatch")].mean_of("planned_save_ratio") is None
    for method in ("importance_sampling", "random", "rcap", "ted"):
        assert results[method].planned_save_ratio == pytest.approx(results[method].save_ratio, abs=1e-12)
    for result in (full, *pruned):
        assert json.loads((Path(result.folder) / "result.json").read_text()) == asdict(result)
        assert result.metrics["MulticlassAccuracy"] > 0.15
    kept = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert [arm["method"] for arm in kept] == list(COMPARED)
    ran = {
        method: json.loads((Path(result.folder) / "run.json").read_text())
        for method, result in results.items()
        if result.skip_lists
    }
    assert "site='output'" in ran["ted"]["settings"]


def test_a_comparison_refuses_what_one_method_cannot_do_before_it_trains(settings, tmp_path):
    with pytest.raises(ConfigError, match="pruning: progress is 'samples', but InfoBatch"):
        compare(settings("pruning.progress=samples"), ("none", "ted", "infobatch"), [0])
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_the_seed_decides_a_run(settings):
    common = ["max_duration=2ep", "data.augment=crop_flip"]
    first, again, other = (train(settings(*common, f"seed={seed}")) for seed in (0, 0, 1))
    assert first.metrics == again.metrics
    assert first.metrics != other.metrics


@pytest.mark.long
def test_an_interrupted_run_ends_as_the_whole_one(settings, tmp_path):
    common = ["pruning.method=ted", "data.augment=crop_flip", "save_interval=1ep"]
    whole = train(settings(*common, f"folder={tmp_path / 'whole'}"))
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part, symlinks=True)
    (part / "result.json").unlink()
    latest = part / "checkpoints" / "latest-rank0.pt"
    latest.unlink()
    latest.symlink_to("ep1-ba23-rank0.pt")  # as if it had been killed after the first epoch
    for later in part.glob("checkpoints/ep[23]*"):
        later.unlink()
    resumed = train(settings(*common, f"folder={part}", "autoresume=true"))
    assert resumed.metrics == whole.metrics
    assert resumed.forwarded == whole.forwarded
    assert resumed.wall_seconds < whole.wall_seconds


@pytest.mark.long
def test_a_language_model_trains_from_the_config(tmp_path):
    lines = [{"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n + 1)))} for n in range(40)]
    corpus = tmp_path / "train.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_instructions(tmp_path / "data", corpus, test_fraction=0.2, train_tokenizer_size=300)
    overrides = [f"data.path={tmp_path / 'data'}", f"folder={tmp_path / 'run'}", "data.num_workers=0"]
    sizes = ["data.batch_size=8", "model.n_embd=16", "model.n_layer=1", "max_duration=2ep", "scheduler.warmup=2ba"]
    result = train(load_settings(CONFIGS / "gsm8k_cpu.yaml", [*overrides, *sizes, "progress_bar=false"]))
    assert result.metrics["LanguageCrossEntropy"] < 6
    assert result.save_ratio == pytest.approx(result.planned_save_ratio)


@pytest.mark.long
def test_an_earlier_run_is_replaced_only_when_told(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=true"):
        train(settings("overwrite=false"))
    train(settings("pruning.method=none", "max_duration=1ep"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert (tmp_path / "run" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=gpt", "model.channels=null"], "gpt cannot train on .* holds images"),
        (["autoresume=true"], "set save_interval"),
    ],
)
def test_contradictions_are_refused_before_training(overrides, message, settings):
    with pytest.raises(ConfigError, match=message):
        train(settings(*overrides))

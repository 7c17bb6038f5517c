from dataclasses import fields
from pathlib import Path

import pytest

from ted_stream.methods import METHODS, ImportanceSampling, InfoBatch, RandomPruning
from ted_stream.pipelines.training.settings import (
    METHOD_NAMES,
    SHUFFLES,
    TRAINERS,
    ConfigError,
    epochs,
    load_settings,
    replaced,
    settings_of,
)

EVERY = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in EVERY if not path.name.startswith("bench_")]
QUICKSTART = next(path for path in CONFIGS if path.name == "quickstart.yaml")


def test_every_shuffle_of_streaming_is_known():
    algos = pytest.importorskip("streaming.base.shuffle").algos
    assert set(SHUFFLES) == set(algos)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_without_a_warning(path, trainer, recwarn):
    settings = load_settings(path, [f"trainer={trainer}"])
    assert epochs(settings) > 0
    assert settings.folder == f"runs/{settings.run_name}"
    assert not recwarn.list


def test_overrides_win_and_the_last_most():
    overrides = ["pruning.prune_ratio=0.3", "model.channels=[4, 8]", "seed=1", "seed=2", "pruning.beta=null"]
    settings = load_settings(QUICKSTART, overrides)
    assert settings.pruning.given == {"prune_ratio": 0.3}
    assert settings.model.channels == [4, 8]
    assert settings.seed == 2
    assert [load_settings(QUICKSTART, [f"run_name={name}"]).run_name for name in ("007", "1e3")] == ["007", "1e3"]
    assert load_settings(QUICKSTART, ["data.path=007", "folder=runs/${run_name}/1"]).data.path == "007"
    assert settings.pruning.value == RandomPruning(0.3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning.prune_ration=0.5", "no setting pruning.prune_ration; did you mean pruning.prune_ratio"),
        ("modle.name=gpt", "no setting modle; did you mean model"),
        ("prune_ratio=0.5", "no setting prune_ratio; did you mean pruning.prune_ratio"),
        ("data.zzz=1", "no setting data.zzz; there is data.augment, data.batch_size"),
        ("data.batch_size=many", "data.batch_size is 'many', expected a whole number such as 8"),
        ("data.batch_size=1.5", r"data.batch_size is 1\.5, expected a whole number"),
        ("data.path=", "data.path is empty, expected text"),
        ("folder=null", "folder is empty, expected text"),
        ("seed=null", "seed is empty, expected a whole number"),
        ("optimizer.lr=high", "optimizer.lr is 'high', expected a number such as 0.1"),
        ("model.channels=8", "model.channels is 8, expected a list in brackets, of a whole number such as 8 each"),
        ("model.channels=[8, x]", r"model.channels\[1\] is 'x', expected a whole number"),
        ("data.shuffle=2", "data.shuffle is 2, expected true or false"),
        ("data.in_memory=-1", "data.in_memory is -1, expected true or false"),
        ("model.batch_norm=maybe", "model.batch_norm is 'maybe', expected true or false"),
        ("data.batch_size=0", r"data.batch_size is 0, but it must lie in \[1, inf\)"),
        ("model.channels=[-1]", r"model.channels is -1, but it must lie in \[1, inf\)"),
        ("model.channels=[]", r"model.channels is \[\], expected at least one in a list"),
        ("optimizer.betas=[0.9]", r"optimizer.betas is \[0\.9\], expected 2 in a list"),
        ("optimizer.lr=nan", "optimizer.lr is nan, but"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0, but"),
        ("seed=-1", r"seed is -1, but it must lie in \[0, 4294967296\)"),
        ("run_name=../x", r"run_name is '\.\./x', which is no folder within runs/"),
        ("run_name=/x", "run_name is '/x', which is no folder"),
        ("run_name=''", "run_name is '', which is no folder"),
        ("optimizer.name=adma", "optimizer.name: no 'adma'; did you mean adamw"),
        ("pruning.method=teds", "pruning.method: no 'teds'; did you mean ted"),
        ("pruning.progress=sample", "pruning.progress: no 'sample'; did you mean samples"),
        ("pruning.prune_ratio=null", r"no value for pruning\.prune_ratio, which ted needs"),
        ("pruning.prune_ratio=1.5", r"pruning: prune_ratio is 1\.5, but it must lie in \[0, 1\)"),
        ("pruning.prune_ratio=most", "pruning.prune_ratio is 'most', expected a number"),
        ("pruning.site=logits", "pruning: site is 'logits', but .* 'input', 'features', 'output'"),
        ("pruning.choice=top_k", "pruning: choice is 'top_k'"),
        ("pruning.folder=x", "no setting pruning.folder; did you mean folder"),
        ("model=convnet", "model is a section"),
        ("max_duration=100ba", "max_duration is '100ba', but an epoch that is pruned has fewer batches"),
        ("run_name", "not of the form key=value"),
        ("scheduler.name=multistep", "multistep needs at least one"),
        ("data.image_size=0", r"data.image_size is 0, but it must lie in \[1, inf\)"),
        ("data.shuffle_algo=foo", "data.shuffle_algo: no 'foo'; there is naive, py1br, py1e, py1s, py2s"),
        ("data.color_jitter=2", r"data.color_jitter is 2.0, but it must lie in \[0, 1\]"),
        ("data.color_jitter=0.4", "data.color_jitter is 0.4, but data.augment is none; set data.augment=random"),
        ("data.augment=crop_flop", "data.augment: no 'crop_flop'; did you mean crop_flip"),
        ("trainer=composr", "trainer: no 'composr'; did you mean composer"),
        ("precision=bf16", "precision: no 'bf16'; did you mean amp_bf16"),
        (
            "device_train_microbatch_size=0",
            r"device_train_microbatch_size is 0, but it must lie in \[1, inf\): null takes",
        ),
        ("eval_interval=2", "eval_interval: '2' is no time here; write for example 1ep or 500ba"),
        ("save_interval=0ep", "save_interval: '0ep' must be a whole number from 1 on"),
        ("scheduler.warmup=5sp", r"scheduler.warmup: '5sp' is no time here; .* ep \(epochs\), ba \(batches\), dur"),
        ("scheduler.warmup=2dur", r"scheduler.warmup: '2dur' must be .* of dur a share in \(0, 1\]"),
        ("scheduler.milestones=[1ep, soon]", r"scheduler.milestones\[1\]: 'soon' is no time here"),
        ("autoresume=true", "autoresume goes on from checkpoints: set save_interval"),
        ("pruning.output_layer=' '", "pruning.output_layer is empty; name a layer, or set null"),
    ],
)
def test_what_is_wrong_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(QUICKSTART, ["pruning.method=ted", override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.name=cosine", "scheduler.warmup=25ep"], "warmup is 25ep, but the run ends after 24ep by max_dur"),
        (
            ["scheduler.name=multistep", "scheduler.milestones=[24ep, 30ep]"],
            r"scheduler.milestones\[1\] is 30ep, but the run ends after 24ep",
        ),
        (
            ["scheduler.name=linear", "scheduler.warmup=101ba", "max_duration=100ba", "pruning.method=none"],
            "scheduler.warmup is 101ba, but the run ends after 100ba",
        ),
    ],
)
def test_a_schedule_does_not_go_beyond_the_run(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(QUICKSTART, overrides)


def test_a_schedule_may_go_to_the_end_of_the_run():
    multistep = ["scheduler.name=multistep", "scheduler.warmup=24ep", "scheduler.milestones=[24ep, 1dur, 9999ba]"]
    assert load_settings(QUICKSTART, multistep).scheduler.warmup == "24ep"
    with pytest.warns(UserWarning, match="scheduler.warmup has no effect"):
        assert load_settings(QUICKSTART, ["scheduler.warmup=25ep"]).scheduler.name == "onecycle"


@pytest.mark.long
def test_every_field_of_every_method_can_be_set():
    """The section follows the methods: what is registered can be named, and what is a field can be set."""
    assert ("none", *METHODS) == METHOD_NAMES
    values = {"class_shares": "sqrt", "norm": 1, "pool": 0.8, "reference": "a.parquet", "skip_list": "a.parquet"}
    values |= {"site": "output"}
    needs = {
        "learnability": ["pruning.reference=b.parquet"],
        "fixed_subset": ["pruning.skip_list=b.parquet", "pruning.prune_ratio=null"],
    }
    goes_with = {
        ("composed", "site"): "pruning.importance=mask_gradient",
        ("composed", "norm"): "pruning.importance=mask_gradient",
        "beta": "pruning.schedule=roller-coaster",
        "floor": "pruning.choice=sampled",
        "temperature": "pruning.choice=sampled",
    }
    for name, method in METHODS.items():
        for option in fields(method):
            value = values.get(option.name, option.default)
            if not isinstance(value, (bool, int, float, str)):
                value = 0.3
            given = [f"pruning.method={name}", *needs.get(name, []), f"pruning.{option.name}={value}"]
            other = goes_with.get((name, option.name)) or goes_with.get(option.name)
            if other and other.partition("=")[0].removeprefix("pruning.") in settings_of(name):
                given.append(other)
            made = load_settings(QUICKSTART, given).pruning.value
            assert isinstance(made, method)
            assert getattr(made, option.name) == value, option.name


def test_a_setting_that_the_method_does_not_have_is_refused():
    common = ["pruning.method=infobatch", "pruning.site=input"]
    with pytest.raises(ConfigError, match=r"pruning\.site: infobatch has no such setting, it has prune_ratio, anneal"):
        load_settings(QUICKSTART, common)
    assert load_settings(QUICKSTART, [*common, "pruning.site=null"]).pruning.value == InfoBatch(0.7)
    assert load_settings(QUICKSTART, ["pruning.method=none"]).pruning.value is None
    sampling = load_settings(QUICKSTART, ["pruning.method=importance_sampling", "pruning.floor=0.2"]).pruning.value
    assert sampling == ImportanceSampling(0.7, floor=0.2)


def test_sharding_refuses_channels_last():
    with pytest.raises(ConfigError, match=r"model\.channels_last=false"):
        load_settings(QUICKSTART, ["fsdp=true", "model.channels_last=true"])


def test_what_one_trainer_cannot_do_is_refused_by_name():
    for name in ("eval_interval", "save_interval"):
        load_settings(QUICKSTART, [f"{name}=1000sp"])
        with pytest.raises(ConfigError, match=rf"{name}: '1000sp' is no time here; .*ep \(epochs\), ba \(batches\)\."):
            load_settings(QUICKSTART, [f"{name}=1000sp", "trainer=loop"])
    load_settings(QUICKSTART, ["fsdp=true", "precision=amp_fp16"])
    load_settings(QUICKSTART, ["fsdp=true", "compile=true"])
    with pytest.raises(ConfigError, match=r"fsdp: the loop compiles whole models.* set compile=false"):
        load_settings(QUICKSTART, ["fsdp=true", "compile=true", "trainer=loop"])
    with pytest.raises(ConfigError, match=r"does not scale gradients that are sharded; set precision=amp_bf16, or tr"):
        load_settings(QUICKSTART, ["fsdp=true", "precision=amp_fp16", "trainer=loop"])
    for trainer in TRAINERS:
        with pytest.raises(ConfigError, match=r"fsdp: lars takes the norms of whole layers.*optimizer\.name=sgd"):
            load_settings(QUICKSTART, ["fsdp=true", "optimizer.name=lars", f"trainer={trainer}"])


def test_unknown_keys_of_a_file_are_refused_by_name_at_every_level(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(QUICKSTART.read_text().replace("  momentum:", "  momentun:"))
    with pytest.raises(ConfigError, match=r"bad\.yaml: no setting optimizer\.momentun; did you mean optimizer\.mom"):
        load_settings(path)
    path.write_text("run_nam: x\n")
    with pytest.raises(ConfigError, match="no setting run_nam; did you mean run_name"):
        load_settings(path)


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_settings(tmp_path / "nowhere.yaml")
    path = tmp_path / "c.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_settings(path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="settings by name"):
        load_settings(path)
    path.write_text("run_name: x\n")
    with pytest.raises(ConfigError, match=r"no value for data\.path, max_duration, model\.name, optimizer\.lr"):
        load_settings(path)


def test_an_option_of_another_choice_is_a_warning():
    with pytest.warns(UserWarning, match=r"model\.n_layer has no effect: convnet does not take it"):
        load_settings(QUICKSTART, ["model.n_layer=3"])


def test_replaced_copies_and_checks():
    settings = load_settings(QUICKSTART)
    other = replaced(settings, {"pruning.method": "ted", "seed": 5})
    assert (other.pruning.method, other.seed) == ("ted", 5)
    assert (settings.pruning.method, settings.seed) == ("random", 0)
    with pytest.raises(ConfigError, match=r"pruning\.methud"):
        replaced(settings, {"pruning.methud": "ted"})

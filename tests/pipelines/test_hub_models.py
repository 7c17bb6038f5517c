"""Recipes that fine-tune models as a hub has them: whole or by adapters, language models and classifiers."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hub_folders import write_bert, write_instructions, write_llama, write_texts
from outcomes import outcome, weights_of
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef
from streaming import LocalDataset
from tokenizers.normalizers import Lowercase
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    MPNetConfig,
    RobertaConfig,
)
from transformers import AutoModelForSequenceClassification as AutoModel

from ted_stream import read_skip_list
from ted_stream.export.run_files import SCORES
from ted_stream.pipelines.corpora.prepared import read_description
from ted_stream.pipelines.training.checkpoints import Frozen
from ted_stream.pipelines.training.hub_models import pretrained
from ted_stream.pipelines.training.networks import IMAGE_MODELS
from ted_stream.pipelines.training.score import score
from ted_stream.pipelines.training.score_results import SCORES_FILE
from ted_stream.pipelines.training.score_settings import load_scoring
from ted_stream.pipelines.training.settings import ConfigError, Model, load_settings
from ted_stream.pipelines.training.sharding import let_composer_shard_layers, repeated_layers, shard
from ted_stream.pipelines.training.tasks import build_task
from ted_stream.pipelines.training.train import train

ROOT = Path(__file__).parents[2]
ALPACA = str(ROOT / "configs" / "alpaca_llama2_7b_lora.yaml")
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
GLUE = str(ROOT / "configs" / "glue_bert_base.yaml")
COMMAND = ROOT / "ted_stream" / "cli" / "__main__.py"
KILLED = Path(__file__).with_name("killed_training.py")
SMALL = [
    *("data.batch_size=6", "data.eval_batch_size=8", "scheduler.warmup=2ba", "progress_bar=false", "optimizer.lr=0.01"),
    *("precision=fp32", "model.dtype=float32", "data.num_workers=0"),
]
Overrides = Callable[..., list[str]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and the corpora that were prepared with their tokenizers."""
    folder = tmp_path_factory.mktemp("hub")
    write_instructions(folder / "instructions", write_llama(folder / "llama"))
    bert = write_bert(folder / "bert")
    write_instructions(folder / "with_bert", bert)
    for task in ("sst2", "stsb"):
        write_texts(folder / task, bert, task)
    return folder


@pytest.fixture
def alpaca(hub: Path, tmp_path: Path) -> Overrides:
    """A function that makes a small LoRA run's overrides, of its folder's name and more overrides."""

    def make(name: str, *more: str) -> list[str]:
        places = [f"data.path={hub / 'instructions'}", f"model.pretrained={hub / 'llama'}", f"folder={tmp_path / name}"]
        return [*SMALL, *places, *more]

    return make


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


@pytest.mark.quick("loop")
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_adapters_alone_are_trained(trainer: str, alpaca: Overrides, hub: Path, tmp_path: Path) -> None:
    settings = load_settings(ALPACA, alpaca("run", f"trainer={trainer}", "save_interval=1ep", "max_duration=4ep"))
    result = train(settings)
    assert result.metrics["LanguageCrossEntropy"] < np.log(280)
    assert result.save_ratio > 0.1
    samples: Any = LocalDataset(str(hub / "instructions" / "train"))
    lengths = np.array([len(samples[at]["input_ids"]) for at in range(len(samples))])
    lists = [read_skip_list(path) for path in sorted((tmp_path / "run" / "skip_lists").iterdir())]
    assert result.tokens == sum(lengths[kept.keep_mask()].sum() for kept in lists)
    assert result.token_save_ratio == 1 - result.tokens / (4 * lengths.sum())
    scores = pq.read_table(tmp_path / "run" / SCORES)["score"].to_numpy()
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) > 10
    assert all("lora_" in name for name in weights_of(tmp_path / "run"))
    model: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    before, after = AutoModelForCausalLM.from_pretrained(hub / "llama"), model.merge_and_unload()
    changed = {name for name, value in weights(before).items() if not torch.equal(value, weights(after)[name])}
    assert changed == {f"model.layers.{at}.self_attn.{name}_proj.weight" for at in (0, 1) for name in ("q", "v")}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(hub / "llama").get_vocab()


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["model.lora_r=null", "model.lora_alpha=null"]], ids=["lora", "all"])
def test_composer_and_the_loop_make_the_same_to_the_bit(more: list[str], alpaca: Overrides, tmp_path: Path) -> None:
    for trainer in ("composer", "loop"):
        train(load_settings(ALPACA, alpaca(trainer, f"trainer={trainer}", "save_interval=3ep", *more)))
    assert outcome(tmp_path / "loop") == outcome(tmp_path / "composer")


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_the_rate_comes_on_by_tokens(trainer: str, alpaca: Overrides, hub: Path, tmp_path: Path) -> None:
    """Which every epoch's record counts; with another rate the run is another."""
    losses = {}
    for progress in ("samples", "tokens"):
        more = (f"trainer={trainer}", f"pruning.progress={progress}", "max_duration=3ep", "pruning.method=random")
        losses[progress] = train(load_settings(ALPACA, alpaca(progress, *more))).metrics
    samples: Any = LocalDataset(str(hub / "instructions" / "train"))
    lengths = np.array([len(samples[at]["input_ids"]) for at in range(len(samples))])
    records = json.loads((tmp_path / "tokens" / "run.json").read_text())["epochs"]
    lists = [read_skip_list(tmp_path / "tokens" / record["skip_list"]) for record in records]
    assert [record["kept_size"] for record in records] == [lengths[one.kept_ids()].sum() for one in lists]
    assert losses["tokens"] != losses["samples"]


def test_tokens_that_were_not_counted_are_refused(alpaca: Overrides, hub: Path, tmp_path: Path, digits: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(hub / "instructions", old)
    (old / "train" / "lengths.npy").unlink()

    def refusal() -> str:
        with pytest.raises(ConfigError) as raised:
            train(load_settings(ALPACA, alpaca("run", f"data.path={old}", "trainer=loop", "pruning.progress=tokens")))
        return str(raised.value)

    lengths = np.load(hub / "instructions" / "train" / "lengths.npy")
    assert "old/train/lengths.npy cannot be read" in refusal()
    (old / "train" / "lengths.npy").write_bytes(b"no array")
    assert "old/train/lengths.npy cannot be read" in refusal()
    np.save(old / "train" / "lengths.npy", lengths[::-1] + (np.arange(len(lengths)) == 0))
    assert f"tokens, and the dataset has {len(lengths)} and {lengths.sum()}; prepare it again" in refusal()
    with pytest.raises(ConfigError, match=r"pruning.progress: tokens, but .* holds images, of which none were counted"):
        train(load_settings(QUICKSTART, [f"data.path={digits}", "pruning.progress=tokens"]))


@pytest.mark.long
def test_gradient_checkpointing_changes_nothing(alpaca: Overrides, tmp_path: Path) -> None:
    for name in ("true", "false"):
        more = [f"model.gradient_checkpointing={name}", "trainer=loop", "save_interval=3ep", "model.lora_dropout=0.1"]
        train(load_settings(ALPACA, alpaca(name, *more)))
    assert outcome(tmp_path / "true") == outcome(tmp_path / "false")


def resumed(config: str, overrides: Overrides, out: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outcomes of a run that was stopped in its second epoch and went on, and of one that was not."""
    common = ["save_interval=2ba", "autoresume=true", *more]
    train(load_settings(config, overrides("lived", *common)))
    command = [sys.executable, str(KILLED), "9", config, *overrides("killed", *common)]
    if "trainer=loop" in more:
        assert subprocess.run(command, timeout=300, check=False).returncode == -signal.SIGKILL
    else:
        shutil.copytree(out / "lived", out / "killed")
        for name in ("result.json", "model", "manifest.parquet"):
            path = out / "killed" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoints = out / "killed" / "checkpoints"
        (checkpoints / "latest-rank0.pt").unlink()
        (checkpoints / "latest-rank0.pt").symlink_to(next(checkpoints.glob("ep*-ba8-rank0.pt")).name)
    assert not (out / "killed" / "result.json").exists()
    train(load_settings(config, overrides("killed", *common)))
    return outcome(out / "killed"), outcome(out / "lived")


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_adapters_go_on_to_the_bit(trainer: str, alpaca: Overrides, tmp_path: Path) -> None:
    killed, lived = resumed(ALPACA, alpaca, tmp_path, f"trainer={trainer}")
    assert killed == lived


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_other_frozen_weights_are_refused(trainer: str, alpaca: Overrides, hub: Path, tmp_path: Path) -> None:
    """A folder of the same name, or a checkpoint that is named."""
    base = tmp_path / "base"
    shutil.copytree(hub / "llama", base)
    common = [f"trainer={trainer}", f"model.pretrained={base}", "save_interval=1ep"]
    train(load_settings(ALPACA, alpaca("run", *common, "max_duration=2ep")))
    written = "ep1-ba*.pt" if trainer == "loop" else "ep1-ba*-rank0.pt"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob(written)
    with pytest.raises(ConfigError, match=r"was written with the adapters .*and this run has"):
        train(load_settings(ALPACA, alpaca("other", *common, f"load_path={checkpoint}", "model.lora_alpha=64")))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(base)
    with pytest.raises(ConfigError, match="written beside other frozen weights"):
        train(load_settings(ALPACA, alpaca("run", *common, "max_duration=3ep", "autoresume=true")))
    if trainer == "loop":
        given = ["method=ifd", "train=false", f"load_path={checkpoint}", f"model.pretrained={base}"]
        with pytest.raises(ConfigError, match="written beside other frozen weights"):
            score(load_scoring(ALPACA, alpaca("scored", *given)))


def test_what_is_frozen_is_told_from_others(hub: Path) -> None:
    def told(change: Callable[[Any], None] = lambda _: None, seed: int = 0, **lora: Any) -> Frozen:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(hub / "llama")
        given = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]} | lora
        model.add_adapter(LoraConfig(**given))
        with torch.no_grad():
            change(model)
        return Frozen.of(model)

    def one_element(model: Any) -> None:
        model.model.layers[1].mlp.up_proj.weight[31, 17] += 1e-3

    whole = told()
    assert told(seed=1) == told(lambda model: model.lm_head.original_module.weight.zero_()) == whole
    assert told(lora_dropout=0.5, target_modules=["v_proj", "q_proj"]) == whole
    assert told(lambda model: model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.add_(1)) == whole
    assert told(one_element).weights != whole.weights
    assert told(lambda model: model.model.to(torch.bfloat16)).weights != whole.weights
    assert told(lora_alpha=3).adapters != whole.adapters
    assert told(lora_alpha=3).weights == whole.weights


@pytest.fixture
def glue(hub: Path, tmp_path: Path) -> Callable[[str], Overrides]:
    """Of a task, a function that makes a small run's overrides, of its folder's name and more overrides."""

    def of(task: str) -> Overrides:
        def make(name: str, *more: str) -> list[str]:
            places = [f"data.path={hub / task}", f"model.pretrained={hub / 'bert'}", f"folder={tmp_path / name}"]
            return [*SMALL, *places, "max_duration=4ep", *more]

        return make

    return of


@torch.no_grad()
def predicted(model: Path, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the saved model for the test samples one by one, and their labels."""
    kind = AutoPeftModelForSequenceClassification if (model / "adapter_config.json").exists() else AutoModel
    network: Any = kind.from_pretrained(model).eval()
    samples: Any = LocalDataset(str(data / "test"))
    outputs = []
    for at in range(len(samples)):
        tokens = {name: value for name, value in samples[at].items() if name != "labels"}
        inputs = {name: torch.from_numpy(value.astype(np.int64))[None] for name, value in tokens.items()}
        outputs.append(network(**inputs).logits)
    return torch.cat(outputs), torch.tensor([samples[at]["labels"] for at in range(len(samples))])


def test_a_classifier(glue: Callable[[str], Overrides], hub: Path, tmp_path: Path) -> None:
    result = train(load_settings(GLUE, glue("sst2")("run", "trainer=loop")))
    logits, labels = predicted(tmp_path / "run" / "model", hub / "sst2")
    found = logits.argmax(1)
    assert result.metrics == {
        "MulticlassAccuracy": pytest.approx((found == labels).double().mean().item()),
        "MulticlassMatthewsCorrCoef": pytest.approx(matthews_corrcoef(labels, found)),
        "CrossEntropy": pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4),
    }
    assert result.metrics["MulticlassAccuracy"] > 0.7
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_ranks_test_every_sample_once(
    trainer: str, glue: Callable[[str], Overrides], hub: Path, tmp_path: Path, launch: Callable[..., None]
) -> None:
    """Of an odd number two ranks read one twice, in a batch of its own where four make a batch."""
    write_texts(tmp_path / "odd", hub / "bert", size=45)
    more = [f"trainer={trainer}", f"data.path={tmp_path / 'odd'}", "data.eval_batch_size=4", "max_duration=2ep"]
    launch(COMMAND, "train", GLUE, *glue("sst2")("run", *more), ranks=2)
    logits, labels = predicted(tmp_path / "run" / "model", tmp_path / "odd")
    assert len(labels) == 45
    told = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert told["MulticlassAccuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-6)
    assert told["CrossEntropy"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_model_without_segments(glue: Callable[[str], Overrides], hub: Path, tmp_path: Path) -> None:
    """DistilBERT's, whose tokenizers tell of segments all the same."""
    config = DistilBertConfig(vocab_size=280, dim=32, hidden_dim=48, n_layers=1, n_heads=2, max_position_embeddings=64)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path / "distilled")
    AutoTokenizer.from_pretrained(hub / "bert").save_pretrained(tmp_path / "distilled")
    samples: Any = LocalDataset(str(hub / "sst2" / "train"))
    assert "token_type_ids" in samples[0]
    more = ["trainer=loop", f"model.pretrained={tmp_path / 'distilled'}", "max_duration=2ep"]
    for lora in ((), ("model.lora_r=2", "model.lora_targets=[q_lin]")):
        result = train(load_settings(GLUE, glue("sst2")(f"run-{len(lora)}", *more, *lora)))
        assert np.isfinite(result.metrics["CrossEntropy"])


def test_a_method_that_asks_no_model_needs_no_weights(glue: Callable[[str], Overrides], tmp_path: Path) -> None:
    score(load_scoring(GLUE, glue("sst2")("scored", "method=uniform", "prune_ratio=0.5")))
    assert read_skip_list(tmp_path / "scored" / "skip_list.parquet").num_kept > 0


def test_what_is_asked_as_it_is_has_all_its_weights(
    glue: Callable[[str], Overrides], hub: Path, tmp_path: Path
) -> None:
    """Else the scores would be those of a new, random head."""
    asked = glue("sst2")("scored", "method=el2n", "train=false", "prune_ratio=0.5")
    with pytest.raises(ConfigError, match=r"bert has no weights of bert.pooler.dense.bias for this dataset, and new"):
        score(load_scoring(GLUE, asked))
    trained = AutoModel.from_pretrained(hub / "bert", id2label={0: "NEGATIVE", 1: "POSITIVE"})
    trained.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(hub / "bert").save_pretrained(tmp_path / "trained")
    score(load_scoring(GLUE, [*asked, f"model.pretrained={tmp_path / 'trained'}"]))
    samples: Any = LocalDataset(str(hub / "sst2" / "train"))
    tokens = torch.from_numpy(samples[3]["input_ids"].astype(np.int64))[None]
    with torch.no_grad():
        chances = trained.eval()(input_ids=tokens).logits[0].softmax(0)
    distance = (chances - torch.nn.functional.one_hot(torch.tensor(samples[3]["labels"]), 2)).norm().item()
    scores = pq.read_table(tmp_path / "scored" / SCORES_FILE).to_pydict()
    assert dict(zip(scores["sample_id"], scores["score"], strict=True))[3] == pytest.approx(distance, rel=1e-5)


def test_a_head_of_other_classes_is_told_of(hub: Path, tmp_path: Path) -> None:
    """By its outputs' names, or that they have none; one of another size gives way to a new one."""

    def loaded(data: str, *labels: Any, is_trained: bool) -> None:
        names = dict(enumerate(labels))
        AutoModel.from_pretrained(hub / "bert", id2label=names).save_pretrained(tmp_path / "other")
        options = Model(name="sequence_classifier", pretrained=str(tmp_path / "other"))
        pretrained(options, read_description(str(hub / data)), is_trained=is_trained)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for is_trained in (True, False):
            loaded("sst2", "Negative", "POSITIVE", is_trained=is_trained)
        loaded("sst2", "a", "b", "c", is_trained=True)
        loaded("sst2", "LABEL_0", "LABEL_1", is_trained=True)
        loaded("stsb", "LABEL_0", is_trained=True)
    with pytest.raises(ConfigError, match="are POSITIVE, NEGATIVE, and the dataset's classes negative, positive, so"):
        loaded("sst2", "POSITIVE", "NEGATIVE", is_trained=False)
    for data, labels, is_trained in (
        ("sst2", ["POSITIVE", "NEGATIVE"], True),
        ("sst2", ["neg", "pos"], False),
        ("sst2", [0, 1], False),
        ("sst2", ["LABEL_0", "LABEL_1"], False),
        ("stsb", ["similarity"], False),
    ):
        with pytest.warns(UserWarning, match="they are taken to mean the same, in this order"):
            loaded(data, *labels, is_trained=is_trained)


def test_positions_that_begin_behind_that_of_padding_are_left_out(hub: Path, tmp_path: Path) -> None:
    """As RoBERTa and MPNet count them."""
    description = read_description(str(hub / "sst2"))
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    for config in (RobertaConfig, MPNetConfig):
        limit = description.max_length + 2
        made = AutoModel.from_config(config(vocab_size=300, max_position_embeddings=limit, pad_token_id=1, **sizes))
        made.save_pretrained(tmp_path / "model")
        options = Model(name="sequence_classifier", pretrained=str(tmp_path / "model"))
        pretrained(options, description)
        with pytest.raises(ConfigError, match=f"takes {limit - 2} tokens"):
            pretrained(options, replace(description, max_length=limit - 1))


@pytest.mark.quick("loop")
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_every_target_of_a_batch_counts_alike(trainer: str, alpaca: Overrides, tmp_path: Path) -> None:
    """However the batch is split; by the shares of samples the weights would be a twentieth off."""
    more = [f"trainer={trainer}", "optimizer.name=sgd", "optimizer.lr=1", "save_interval=3ep", "pruning.method=random"]
    for name, size in (("whole", "null"), ("parts", "1")):
        train(load_settings(ALPACA, alpaca(name, *more, f"device_train_microbatch_size={size}")))
    expected, found = (weights_of(tmp_path / name) for name in ("whole", "parts"))
    for adapter, value in expected.items():
        assert (found[adapter] - value).norm() < 1e-5 * value.norm(), adapter


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_every_target_of_two_ranks_counts_alike(
    trainer: str, alpaca: Overrides, tmp_path: Path, launch: Callable[..., None]
) -> None:
    """In an epoch of whole batches, which the ranks share as one process has them."""
    more = [f"trainer={trainer}", "optimizer.name=sgd", "optimizer.lr=1", "save_interval=1ep", "max_duration=1ep"]
    more += ["pruning.method=none", "data.batch_size=4"]
    train(load_settings(ALPACA, alpaca("one", *more)))
    launch(COMMAND, "train", ALPACA, *alpaca("two", *more, "device_train_microbatch_size=1"), ranks=2)
    expected, found = (weights_of(tmp_path / name) for name in ("one", "two"))
    for adapter, value in expected.items():
        assert (found[adapter] - value).norm() < 1e-4 * value.norm(), adapter


@pytest.mark.long
def test_scores(glue: Callable[[str], Overrides], hub: Path, tmp_path: Path) -> None:
    result = train(load_settings(GLUE, glue("stsb")("run", "trainer=loop", "max_duration=20ep", "optimizer.lr=0.003")))
    outputs, labels = predicted(tmp_path / "run" / "model", hub / "stsb")
    found = outputs.squeeze(1)
    assert result.metrics == {
        "PearsonCorrCoef": pytest.approx(pearsonr(found, labels)[0], abs=0.02),
        "SpearmanCorrCoef": pytest.approx(spearmanr(found, labels)[0], abs=0.02),
        "MeanSquaredError": pytest.approx((found - labels).square().mean().item(), rel=1e-4),
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("task", ["sst2", "stsb"])
@pytest.mark.parametrize("model", ["bert", "sequence_classifier"])
def test_both_trainers_classify_and_rate_the_same_to_the_bit(
    task: str, model: str, glue: Callable[[str], Overrides], tmp_path: Path
) -> None:
    more = ["save_interval=4ep", f"model.name={model}", *(["model.n_embd=32"] if model == "bert" else [])]
    for trainer in ("composer", "loop"):
        train(load_settings(GLUE, glue(task)(trainer, f"trainer={trainer}", *more)))
    assert outcome(tmp_path / "loop") == outcome(tmp_path / "composer")


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["composer", "loop"])
def test_a_head_beside_adapters_goes_on_to_the_bit(
    trainer: str, glue: Callable[[str], Overrides], hub: Path, tmp_path: Path
) -> None:
    killed, lived = resumed(GLUE, glue("sst2"), tmp_path, f"trainer={trainer}", "model.lora_r=4")
    assert any("classifier" in name for name in killed["weights"])
    assert killed == lived
    logits, labels = predicted(tmp_path / "killed" / "model", hub / "sst2")
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert killed["metrics"]["CrossEntropy"] == pytest.approx(loss, rel=1e-4)  # with the pooler that was drawn


@pytest.mark.long
def test_two_ranks_in_sixteen_bits(
    alpaca: Overrides, launch: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in bfloat16, and adapters beside them in float32: on two ranks about what one makes of them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = ["model.dtype=bfloat16", "save_interval=3ep", "pruning.progress=epochs"]
    train(load_settings(ALPACA, alpaca("one", "trainer=loop", *more)))
    for trainer in ("composer", "loop"):
        launch(COMMAND, "train", ALPACA, *alpaca(trainer, f"trainer={trainer}", *more), ranks=2, timeout=900)
    one = outcome(tmp_path / "one")
    for trainer in ("composer", "loop"):
        found = outcome(tmp_path / trainer)
        # Of several ranks Composer's checkpoint holds the frozen weights, too.
        adapters = {name: value for name, value in weights_of(tmp_path / trainer).items() if "lora_" in name}
        assert {value.dtype for value in adapters.values()} == {torch.float32}
        assert found["planned_save_ratio"] == one["planned_save_ratio"]
        loss = one["metrics"]["LanguageCrossEntropy"]
        assert found["metrics"]["LanguageCrossEntropy"] == pytest.approx(loss, rel=1e-2)


@pytest.mark.usefixtures("one_rank")
def test_layers_are_sharded_by_themselves(alpaca: Overrides, hub: Path) -> None:
    """So that they are gathered one by one; embeddings, head and adapters of other places are the last unit."""
    task = build_task(load_settings(ALPACA, alpaca("run")).model, read_description(str(hub / "instructions")))
    layers = repeated_layers(task.network)
    assert [type(layer).__name__ for layer in layers] == ["LlamaDecoderLayer"] * 2
    shard(task.network, MixedPrecisionPolicy())
    assert [module for module in task.network.modules() if isinstance(module, FSDPModule)] == [task.network, *layers]


def test_which_layers_are_sharded(hub: Path) -> None:
    bert = AutoModel.from_pretrained(hub / "bert")
    assert repeated_layers(bert) == [*bert.bert.encoder.layer]
    # Transformers names no layers of this one.
    unnamed = DistilBertForMaskedLM(DistilBertConfig(vocab_size=9, dim=8, n_heads=2, n_layers=3, hidden_dim=8))
    assert repeated_layers(unnamed) == [*unnamed.distilbert.transformer.layer]
    # One whose weights are another's, too, would train beside them.
    bert.bert.encoder.layer[1].output.dense.weight = bert.bert.pooler.dense.weight
    assert repeated_layers(bert) == [bert.bert.encoder.layer[0], *bert.bert.encoder.layer[2:]]
    assert repeated_layers(IMAGE_MODELS["convnet"](classes=2, in_channels=1)) == []


@pytest.mark.composer
def test_composer_shards_the_same_layers(alpaca: Overrides, hub: Path) -> None:
    from composer.distributed.fsdp2_utils import generate_composer_model_policy

    from ted_stream.pipelines.training.composer_host import composer_model

    task = build_task(load_settings(ALPACA, alpaca("run")).model, read_description(str(hub / "instructions")))
    let_composer_shard_layers(task.network)
    model = composer_model(task)
    is_sharded = generate_composer_model_policy(model)._lambda_fn
    layers = repeated_layers(task.network)
    assert [module for module in model.modules() if is_sharded(module)] == [task.network, *layers]


@pytest.mark.long
def test_sharded_over_two_ranks(alpaca: Overrides, launch: Callable[..., None], tmp_path: Path) -> None:
    """As replicated, but for rounding: of adapters beside frozen weights, in layers that are recomputed."""
    common = ["save_interval=3ep", "pruning.progress=epochs", "model.gradient_checkpointing=true"]
    for name, *more in (
        ("whole", "trainer=loop"),
        ("loop", "trainer=loop", "fsdp=true"),
        ("composer", "trainer=composer", "fsdp=true"),
    ):
        launch(COMMAND, "train", ALPACA, *alpaca(name, *common, *more), ranks=2, timeout=900)
    expected, weights = outcome(tmp_path / "whole"), weights_of(tmp_path / "whole")
    for name in ("loop", "composer"):
        found, sharded = outcome(tmp_path / name), weights_of(tmp_path / name)
        assert found["digests"] == expected["digests"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
        for adapter, value in weights.items():
            # AdamW takes as large a step by a gradient that is almost nothing but rounding.
            assert (sharded[adapter] - value).norm() < 0.01 * value.norm(), f"{adapter} in {name}"


# Refused


def test_what_does_not_fit_is_refused(alpaca: Overrides, hub: Path, tmp_path: Path) -> None:
    def refusal(*more: str) -> str:
        with pytest.raises(ConfigError) as raised:
            train(load_settings(ALPACA, alpaca("run", "trainer=loop", *more)))
        return str(raised.value)

    nowhere = tmp_path / "nowhere"
    assert refusal(f"model.pretrained={nowhere}").startswith(
        f"model.pretrained: no model could be loaded from '{nowhere}'"
    )
    assert "no value for model.pretrained, which causal_lm needs" in refusal("model.pretrained=null")
    assert "set one of gpt, causal_lm" in refusal("model.name=sequence_classifier")
    assert "set one of bert, sequence_classifier" in refusal(f"data.path={hub / 'sst2'}")
    assert refusal("model.dtype=float16").endswith("There is float32, bfloat16.")
    assert "in which steps of a usual learning rate round to nothing" in refusal(
        "model.dtype=bfloat16", "model.lora_r=null", "model.lora_alpha=null"
    )
    told = refusal("model.name=sequence_classifier", "model.dtype=bfloat16", f"data.path={hub / 'sst2'}")
    assert "set precision=amp_bf16" in told
    assert "fsdp shards weights of one dtype" in refusal("model.dtype=bfloat16", "fsdp=true")
    told = refusal(f"model.pretrained={hub / 'bert'}", f"data.path={hub / 'with_bert'}")
    assert "so it is no causal language model" in told
    adapters = tmp_path / "adapters"
    base = AutoModelForCausalLM.from_pretrained(hub / "llama")
    base.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    base.save_pretrained(adapters)
    assert "holds adapters alone" in refusal(f"model.pretrained={adapters}")
    classifier = AutoModel.from_pretrained(hub / "bert")
    classifier.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    classifier.save_pretrained(adapters)
    (adapters / "config.json").unlink(missing_ok=True)
    given = [f"model.pretrained={adapters}", "model.name=sequence_classifier", f"data.path={hub / 'sst2'}"]
    assert "holds adapters alone" in refusal(*given)
    assert "model.lora_alpha is of adapters, and model.lora_r is null" in refusal(
        "model.lora_r=null", "model.lora_alpha=8"
    )
    told = refusal("model.lora_targets=[q_proj, v_porj]")
    assert "but no layer's name ends in v_porj; those of layers with a matrix end in down_proj" in told
    short = write_llama(tmp_path / "short", max_length=4)
    assert f"{short} takes 4 tokens, and the dataset's samples may have" in refusal(f"model.pretrained={short}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (short / name).read_text()
        (short / name).write_text(text.replace("<eos>", "<end>"))
    lower = tmp_path / "lower"
    shutil.copytree(hub / "llama", lower)
    tokenizer: Any = AutoTokenizer.from_pretrained(lower)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(lower)
    assert "becomes other tokens" in refusal(f"model.pretrained={lower}")
    (lower / "model.safetensors").write_bytes((lower / "model.safetensors").read_bytes()[:5000])
    shutil.copytree(hub / "llama", lower, ignore=lambda _, names: {"model.safetensors"} & {*names}, dirs_exist_ok=True)
    assert refusal(f"model.pretrained={lower}").startswith("model.pretrained: no model could be loaded from")
    assert "is None there; prepare it with --tokenizer" in refusal(f"model.pretrained={short}")
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_more_tokens_than_the_model_has_is_refused(hub: Path) -> None:
    description = replace(read_description(hub / "instructions"), vocab_size=281)
    with pytest.raises(ConfigError, match=r"embeddings of 280 tokens, and the dataset's tokenizer has 281"):
        build_task(Model(name="causal_lm", pretrained=str(hub / "llama")), description)

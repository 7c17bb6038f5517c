"""Models of transformers: with weights from a folder or a hub, or random ones; in LoRA, and saved for other tools."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ted_stream.engine import Ranks
from ted_stream.files import is_remote, join, write_bytes
from ted_stream.folders import new_folder

from ..corpora.prepared import Description
from ..corpora.tokens import TOKENIZER_FOLDER
from .settings import ConfigError, Model

__all__ = ["MODEL_FOLDER", "bert", "gpt", "pretrained", "refuse_other_tokenizer", "save_model"]

MODEL_FOLDER = "model"
_PROBE = "A fine Film, isn't it?\n  It cost 1,234.50 € at the Café."  # capitals, accents, spaces, numbers


def gpt(description: Description, *, n_layer: int = 4, n_head: int = 4, n_embd: int = 128, dropout: float = 0.0) -> Any:
    """A randomly initialised GPT-2, with a token-mean loss.

    Args:
        description: of the dataset.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: width; a multiple of ``n_head``.
        dropout: after embeddings, attention and blocks.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=description.vocab_size,
        n_positions=description.max_length,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
        bos_token_id=None,  # pyright: ignore[reportArgumentType]
        eos_token_id=None,  # pyright: ignore[reportArgumentType]
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what it falls back to, with a warning
    return model


def bert(
    description: Description, *, n_layer: int = 2, n_head: int = 4, n_embd: int = 128, dropout: float = 0.1
) -> Any:
    """A randomly initialised BERT with a head for the dataset's classes, or its score.

    Args:
        description: of the dataset.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: width; a multiple of ``n_head``.
        dropout: after embeddings, attention, blocks and pooling.
    """
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=description.vocab_size,
        max_position_embeddings=description.max_length,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        hidden_size=n_embd,
        intermediate_size=4 * n_embd,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=description.pad_id,
        **_head(description),
    )
    return BertForSequenceClassification(config)


def _head(description: Description) -> dict[str, Any]:
    """What a config says of the head."""
    if not description.classes:
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(description.classes))
    return {
        "num_labels": len(names),
        "problem_type": "single_label_classification",
        "id2label": names,
        "label2id": {name: at for at, name in names.items()},
    }


# With weights -----------------------------------------------------------------------------------------------------


def pretrained(options: Model, description: Description, *, is_trained: bool = True) -> Any:
    """The model whose weights a config names, and what is trained of it.

    Args:
        options: the config's section; ``causal_lm`` or ``sequence_classifier``.
        description: of the dataset that it is trained on.
        is_trained: False where it is asked as it is, and so must have all its weights.

    Raises:
        ConfigError: it cannot be loaded, or is of other tokens, or for shorter texts, than the dataset; or it lacks
            weights that nothing trains.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    is_causal, name = options.name == "causal_lm", options.pretrained
    assert name is not None, "checked before"
    kind: Any = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    # A head of other classes gives way to a new one.
    head = {} if is_causal else {**_head(description), "ignore_mismatched_sizes": True}
    dtype = getattr(torch, options.dtype or "float32")
    try:
        model, told = kind.from_pretrained(name, dtype=dtype, output_loading_info=True, **head)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ConfigError(f"model.pretrained: no model could be loaded from {name!r}: {error}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            f"model.pretrained: {name} holds adapters alone, and nothing of it would be trained; merge them into their "
            "model (peft's merge_and_unload and save_pretrained), and name that."
        )
    new = sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])})
    if is_causal and (new or (type(model.config) in MODEL_FOR_MASKED_LM_MAPPING and not model.config.is_decoder)):
        why = f"has no weights of {new[0]}" if new else "is an encoder, whose tokens see those that come after them"
        raise ConfigError(f"model.pretrained: {name} {why}, so it is no causal language model; name one that is.")
    if new and not is_trained:
        raise ConfigError(
            f"model.pretrained: {name} has no weights of {new[0]} for this dataset, and new, random ones would decide "
            "on the scores; train first (train=true), name a model that was trained on such data, or the checkpoint of "
            "one (load_path=)."
        )
    if not is_causal and not new:
        _look_at_labels(name, description, is_trained)
    _refuse_other_sizes(model, name, description)
    model.config.use_cache = False  # of texts that are generated
    if not is_causal:
        model.config.pad_token_id = description.pad_id  # where a decoder's head finds the end of a text
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if options.lora_r is None:
        return model
    whole = sorted({key.rpartition(".")[0] for key in new})  # what was not loaded is trained, and saved
    return _with_lora(model, options.lora_r, whole, options, is_causal=is_causal)


def _look_at_labels(name: str, description: Description, is_trained: bool) -> None:
    """Of a head that is kept: refuse classes in another order where nothing trains them, warn of other or no names.

    Raises:
        ConfigError: naming both.
    """
    from transformers import AutoConfig

    names: Any = AutoConfig.from_pretrained(name).id2label
    classes = description.classes
    found = [str(names[at]) for at in sorted(names)]
    lower, wanted = [label.lower() for label in found], [label.lower() for label in classes]
    if classes and lower == wanted:
        return
    told = f"the outputs of {name} are {', '.join(found)}, "
    told += f"and the dataset's classes {', '.join(classes)}" if classes else "and the dataset has scores"
    if not is_trained and sorted(lower) == sorted(wanted):
        raise ConfigError(
            f"model.pretrained: {told}, so scores would be of other classes; name a model of this order, or train "
            "first (train=true)."
        )
    tells_names = classes and not all(re.fullmatch(r"label_\d+", label) for label in lower)
    if tells_names or not is_trained:
        warn(f"model.pretrained: {told}: they are taken to mean the same, in this order.", stacklevel=3)


def _refuse_other_sizes(model: Any, name: str, description: Description) -> None:
    """Refuse a model that has no embedding for a token or a position of the dataset.

    Raises:
        ConfigError: saying which.
    """
    rows = model.get_input_embeddings().num_embeddings
    if rows < description.vocab_size:
        raise ConfigError(
            f"model.pretrained: {name} has embeddings of {rows} tokens, and the dataset's tokenizer has "
            f"{description.vocab_size}; prepare the dataset with the model's tokenizer: --tokenizer {name}."
        )
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    for module_name, module in model.named_modules():
        if module_name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1  # they begin behind that of padding, as RoBERTa's do
    if 0 < positions < description.max_length:
        raise ConfigError(
            f"model.pretrained: {name} takes {positions} tokens, and the dataset's samples may have "
            f"{description.max_length}; prepare it with --max-length {positions}."
        )


def refuse_other_tokenizer(options: Model, data: str) -> None:
    """Refuse a dataset whose tokens mean others to the model, where the tokenizers of both are there to tell.

    Raises:
        ConfigError: naming a token that differs.
    """
    from transformers import AutoTokenizer

    if is_remote(data) or not Path(data, TOKENIZER_FOLDER).is_dir():
        return
    try:
        expected: Any = AutoTokenizer.from_pretrained(options.pretrained)
    except (OSError, ValueError):
        return  # there are weights alone
    found: Any = AutoTokenizer.from_pretrained(Path(data, TOKENIZER_FOLDER))
    differs = f"data.path: {data} was tokenized by another tokenizer than that of {options.pretrained}: "
    cure = f"; prepare it with --tokenizer {options.pretrained}."
    ids = found.get_vocab()
    for token, at in expected.get_vocab().items():
        if ids.get(token) != at:
            raise ConfigError(f"{differs}token {at}, {token!r}, is {ids.get(token)} there{cure}")
    if found(_PROBE)["input_ids"] != expected(_PROBE)["input_ids"]:
        raise ConfigError(f"{differs}{_PROBE!r} becomes other tokens{cure}")


def _with_lora(model: Any, rank: int, whole: list[str], options: Model, *, is_causal: bool) -> Any:
    """The model with adapters that are trained in its place, and the layers that are trained whole beside them.

    Raises:
        ConfigError: peft finds no layers to adapt, or none of one of the names.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names = [name for name, _ in model.named_modules()]
    for target in options.lora_targets or []:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            matrices = (name for name, of in model.named_parameters() if of.ndim == 2 and name.endswith(".weight"))
            ends = sorted({name.split(".")[-2] for name in matrices})
            raise ConfigError(
                f"model.lora_targets is {options.lora_targets}, but no layer's name ends in {target}; those of layers "
                f"with a matrix end in {', '.join(ends)}."
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=options.lora_alpha or 2 * rank,
        lora_dropout=options.lora_dropout or 0.0,
        target_modules=options.lora_targets,
        modules_to_save=whole or None,
        task_type=TaskType.CAUSAL_LM if is_causal else TaskType.SEQ_CLS,
    )
    try:
        adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"model.lora_targets is {options.lora_targets}, by which no layer is found; name some, such as [q_proj, "
            f"v_proj]. ({error})"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft leaves layers that are trained whole as they were loaded
    return adapted


# For other tools --------------------------------------------------------------------------------------------------


def save_model(network: nn.Module, folder: str, data: str) -> None:
    """Write a trained model of transformers as its ``from_pretrained`` reads it; collective.

    Of a model with adapters what is trained is written alone, as peft does; and the dataset's tokenizer beside it where
    that is on this machine.

    Args:
        network: the model, on any number of ranks, sharded or not.
        folder: of the run.
        data: the dataset.
    """
    from peft import PeftModel

    has_adapters = isinstance(network, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=has_adapters)
    weights = get_model_state_dict(network, options=options)
    Ranks().on_rank_zero(lambda: _write(network, weights, folder, data))


def _write(network: Any, weights: dict[str, Any], folder: str, data: str) -> None:
    out = join(folder, MODEL_FOLDER)

    def write(made: str | Path) -> None:
        network.save_pretrained(made, state_dict=weights)
        if not is_remote(data) and Path(data, TOKENIZER_FOLDER).is_dir():
            shutil.copytree(Path(data, TOKENIZER_FOLDER), made, dirs_exist_ok=True)

    if not is_remote(folder):
        # In the run's own folder, where a run that goes on replaces what it wrote before.
        with new_folder(out, kind="trained model", is_finished=lambda _: True, overwrite=True) as made:
            write(made)
        return
    with tempfile.TemporaryDirectory() as made:
        write(made)
        for file in sorted(Path(made).iterdir()):
            write_bytes(join(out, file.name), file.read_bytes())

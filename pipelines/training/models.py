"""Models by name, wrapped for Composer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from composer.metrics import CrossEntropy, LanguageCrossEntropy
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .networks import IMAGE_MODELS

__all__ = ["classifier", "gpt"]


def classifier(
    name: str,
    *,
    classes: int,
    in_channels: int,
    label_smoothing: float = 0.0,
    channels_last: bool = False,
    **options: Any,
) -> ComposerModel:
    """An image classifier with accuracy and cross entropy as test metrics.

    Args:
        name: a key of ``IMAGE_MODELS``.
        classes: number of classes.
        in_channels: channels of the images.
        label_smoothing: of the training loss.
        channels_last: keep weights in the memory format of interleaved channels.
        options: of the model's builder.
    """
    module = IMAGE_MODELS[name](classes=classes, in_channels=in_channels, **options)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return ComposerClassifier(
        module,
        num_classes=classes,
        train_metrics=MetricCollection([]),  # the loss is logged anyway
        val_metrics=MetricCollection([MulticlassAccuracy(num_classes=classes, average="micro"), CrossEntropy()]),
        loss_fn=partial(cross_entropy, label_smoothing=label_smoothing),
    )


def gpt(
    *, vocab_size: int, max_length: int, n_layer: int = 4, n_head: int = 4, n_embd: int = 128, dropout: float = 0.0
) -> ComposerModel:
    """A randomly initialised GPT-2 with token-mean loss and language cross entropy as the test metric.

    Args:
        vocab_size: number of tokens.
        max_length: longest sequence.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: width; a multiple of ``n_head``.
        dropout: after embeddings, attention and blocks.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=max_length,
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
    return HuggingFaceModel(model, use_logits=True, metrics=[], eval_metrics=[LanguageCrossEntropy()])

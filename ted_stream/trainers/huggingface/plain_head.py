"""The logits of models that TRL has given a fused language-model head."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ted_stream.pruning.batches import IGNORE_INDEX
from ted_stream.pruning.loss_kinds import in_float32

__all__ = ["PlainHead"]


class PlainHead:
    """Lets a model make its logits where TRL asks it for the log-probabilities of the labels alone.

    TRL's trainers call ``model(…, labels=…, fused_lm_head=True)``, which goes from the hidden states to the
    log-probabilities without the output layer and without logits. Masks and weights sit at that layer, and most
    measures look at logits. So where there are gradients the model is called as it was before TRL patched it, and its
    output gets what the fused head would have given: ``log_probs``, ``entropy``, ``is_top1`` and ``label_mask``,
    (B, S - 1) each.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._labels: Tensor | None = None
        self._has_warned = False

    def attach(self, model: nn.Module) -> None:
        """Hook a model, of TRL's or not."""
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        self._handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Leave the model as it was; again without effect."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del model
        self._labels = None
        if not kwargs.get("fused_lm_head") or not torch.is_grad_enabled():
            return None
        if kwargs.get("shift_labels") is not None:
            raise ValueError(
                "The batch has shift_labels, as under sequence or context parallelism, where samples cannot be told "
                "apart by rows. Train without it."
            )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "Pruning measures samples at their logits, so TRL's fused language-model head, which saves the memory "
                "of logits (batch × tokens × vocabulary), is not used for training steps. If memory runs out, lower "
                "per_device_train_batch_size and raise gradient_accumulation_steps.",
                stacklevel=2,
            )
        self._labels = kwargs["labels"]
        fused = ("fused_lm_head", "labels", "shift_labels", "num_items_in_batch")
        return args, {**{name: value for name, value in kwargs.items() if name not in fused}, "use_cache": False}

    def _after(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        del model, args, kwargs
        if self._labels is None:
            if torch.is_grad_enabled() and getattr(outputs, "log_probs", None) is not None:
                raise ValueError(
                    "The model gives log-probabilities and no logits, by a fused head of another kind than that of TRL "
                    "1.16, so samples cannot be measured. Use that version of TRL, or hand the Trainer a "
                    "compute_loss_func, for which the model makes logits."
                )
            return
        logits, labels = outputs.logits, self._labels.to(outputs.logits.device)
        if logits.shape[:2] != labels.shape:
            raise ValueError(
                f"The model makes logits for {tuple(logits.shape[:2])} positions of {tuple(labels.shape)} labels, as "
                "with prompt learning; it cannot be pruned with TRL's fused head. Use LoRA, or hand SFTTrainer a "
                "compute_loss_func."
            )
        # The labels are moved, and not the logits, of which a slice would be copied.
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        losses = F.cross_entropy(in_float32(logits.flatten(0, 1)), following.flatten(), reduction="none")
        outputs["label_mask"] = mask = labels[:, 1:] != IGNORE_INDEX
        outputs["log_probs"] = -losses.view(labels.shape)[:, :-1]
        with torch.no_grad():
            entropy = torch.stack([_entropy(in_float32(row[:-1])) for row in logits])
            outputs["entropy"] = entropy.masked_fill(~mask, 0)
            outputs["is_top1"] = (logits.argmax(-1)[:, :-1] == labels[:, 1:]) & mask


def _entropy(logits: Tensor) -> Tensor:
    """(…,) of (…, V) logits."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)

"""What of a network FSDP gathers at a time: a layer of those that repeat, and the rest."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

__all__ = ["let_composer_shard_layers", "repeated_layers", "shard"]


def repeated_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a transformer, in its order, but for those that share weights with others.

    They are those of its lists that transformers names as not to be split, or else those of its longest list. None of
    networks without such lists, which are small beside their activations.
    """
    # Some models have the names of themselves, some of a model within.
    names = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    lists = [[*module] for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    named = [layer for layers in lists for layer in layers if type(layer).__name__ in names]
    used = _uses(network)

    def owns_its_weights(layer: nn.Module) -> bool:
        return all(used[parameter] == count for parameter, count in _uses(layer).items())

    return [*filter(owns_its_weights, named or max(lists, key=len, default=[]))]


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How often each of its parameters occurs in it."""
    return Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))


def shard(network: nn.Module, policy: MixedPrecisionPolicy) -> None:
    """Shard its layers and then what is left of it, in place; collective."""
    for module in (*repeated_layers(network), network):
        fully_shard(module, mp_policy=policy)


def let_composer_shard_layers(network: Any) -> None:
    """The same through Composer, which asks the network which of its modules to shard by themselves."""
    network.fsdp_wrap_fn = {*repeated_layers(network)}.__contains__

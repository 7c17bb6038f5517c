"""Which layer makes the logits, and which layers a loss was made of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd

__all__ = [
    "candidate_layers",
    "find_output_layer",
    "input_embedding",
    "is_compiled",
    "layer_name",
    "layers_reached",
    "likely_output_layer",
    "named_layer",
    "shifts_labels",
]

# Path components of wrappers around a module (compile, activation checkpoints, sharding), so that a layer is called
# the same with and without them.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its dotted name without wrappers; of wrappers and what they wrap, the outermost."""
    modules: dict[str, nn.Module] = {}
    root: Any = model
    while isinstance(root, nn.parallel.DistributedDataParallel) or hasattr(root, "_orig_mod"):
        root = root.module if isinstance(root, nn.parallel.DistributedDataParallel) else root._orig_mod
    for name, module in root.named_modules():
        modules.setdefault(_unwrapped(name), module)
    return modules


def layer_name(model: nn.Module, layer: nn.Module) -> str:
    """The dotted name of a layer of the model, without the names of compile's, DDP's and checkpoints' wrappers."""
    return next(name for name, module in _named_modules(model).items() if module is layer)


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """The one layer whose dotted name is, or ends in, this one.

    Raises:
        ValueError: if no module is called so, or several.
    """
    modules = _named_modules(model)
    matches = [found for found in modules if found == name or found.endswith("." + name)]
    if name in matches:
        return modules[name]
    if len(matches) != 1:
        raise ValueError(
            f"output_layer is {name!r}, which names {len(matches)} modules of the model; give the dotted name of one, "
            f"for example {[key for key, value in modules.items() if isinstance(value, nn.Linear)][-1:]}."
        )
    return modules[matches[0]]


def _layer_from(model: nn.Module, getter: str) -> nn.Module | None:
    """What the first module with such a method (Hugging Face's models have them) says is the layer."""
    for module in model.modules():
        method = getattr(module, getter, None)
        layer = method() if callable(method) else None
        if isinstance(layer, nn.Module):
            return layer
    return None


def likely_output_layer(model: nn.Module) -> nn.Module | None:
    """The output embedding (Hugging Face's ``get_output_embeddings``), else the last ``nn.Linear`` to be registered.

    A guess, for where the graph of the loss cannot be walked: wrong for a head that is registered first.
    """
    layer = _layer_from(model, "get_output_embeddings")
    linear = [module for module in _named_modules(model).values() if isinstance(module, nn.Linear)]
    return layer if layer is not None else next(iter(linear[::-1]), None)


def find_output_layer(model: nn.Module, name: str | None = None) -> nn.Module:
    """The layer of that name, else the likely one.

    Raises:
        ValueError: if there is none.
    """
    layer = likely_output_layer(model) if name is None else named_layer(model, name)
    if layer is None:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear, so its output layer cannot be found; name the layer that "
            "makes the logits with output_layer='…', or put the mask at site='input'."
        )
    return layer


def candidate_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by name that may make logits: linear layers, convolutions, whatever else has a weight matrix.

    A wrapper with the weight of what it wraps (an adapter's, a checkpoint's) is one too.
    """
    layer = _layer_from(model, "get_output_embeddings")
    return {
        name: module
        for name, module in _named_modules(model).items()
        if module is layer or isinstance(module, nn.Linear | _ConvNd) or _has_weight_matrix(module)
    }


def _has_weight_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1 and not isinstance(module, nn.LayerNorm)


def layers_reached(tensor: Tensor, made_by: Mapping[Node, str]) -> tuple[list[str], bool]:
    """The layers that a walk from a tensor back along its autograd graph meets first.

    Args:
        tensor: logits or a loss.
        made_by: the layer that each of these nodes of the graph is the output of; the walk stops there.

    Returns:
        Their names, each once, and whether the walk went through compiled code, which hides the layers in it.
    """
    nodes: list[Node | None] = [tensor.grad_fn]
    seen: set[Node] = set()
    found: dict[str, None] = {}
    is_hidden = False
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found[made_by[node]] = None
        else:
            is_hidden |= node.name() == "CompiledFunctionBackward"
            nodes.extend(parent for parent, _ in node.next_functions)
    return list(found), is_hidden


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is under ``torch.compile``, or its forward alone, as by Composer."""
    return any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding (Hugging Face's ``get_input_embeddings``), else the first ``nn.Embedding``."""
    layer = _layer_from(model, "get_input_embeddings")
    if layer is not None:
        return layer
    return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model scores position i against label i + 1.

    Composer's ``HuggingFaceModel`` says so by its attribute ``shift_labels``. A bare Hugging Face model does it if it
    generates and has no encoder.
    """
    told = [module.shift_labels for module in model.modules() if hasattr(module, "shift_labels")]
    if told:
        return any(map(bool, told))
    for module in model.modules():
        can_generate = getattr(module, "can_generate", None)
        if callable(can_generate) and can_generate():
            return not getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return False

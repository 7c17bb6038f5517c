"""Which layer makes the logits, and which layers a loss was made of."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd

__all__ = [
    "Trace",
    "candidate_layers",
    "find_output_layer",
    "input_embedding",
    "is_compiled",
    "is_made_of",
    "layer_name",
    "likely_output_layer",
    "looks_up",
    "named_layer",
    "shifts_labels",
    "trace_back",
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


def looks_up(layer: nn.Module, args: Sequence[Any]) -> bool:
    """Whether a call looks rows up in an embedding with a forward pass of its own, which may make the logits as well.

    MPT's does: a call with whole numbers is the embedding of tokens, one with features makes the logits.
    """
    if not isinstance(layer, nn.Embedding) or type(layer).forward is nn.Embedding.forward:
        return False
    return bool(args) and isinstance(args[0], Tensor) and not args[0].is_floating_point()


@dataclass(frozen=True)
class Trace:
    """What a walk from a tensor back along its autograd graph meets.

    Args:
        met: the nodes at which it stopped, each once.
        leaves: trainable leaves that the tensor is made of beside those nodes, each once; not those of terms that are
            added as one number, as a penalty on weights is.
        is_hidden: whether it went through compiled code, which hides the layers in it.
        is_recomputed: whether it went through a reentrant checkpoint, which hides them too.
    """

    met: tuple[Node, ...]
    leaves: tuple[Tensor, ...]
    is_hidden: bool
    is_recomputed: bool


def trace_back(tensor: Tensor, stops: Set[Node], *, owns_compiled: bool) -> Trace:
    """Walk from logits or a loss back to the nodes that stand for the outputs of layers.

    Args:
        tensor: that has a graph.
        stops: where the walk stops.
        owns_compiled: whether leaves that enter compiled code belong to layers there, and are not told apart.
    """
    root = tensor.grad_fn
    assert root is not None
    users: dict[Node, list[Node]] = {root: []}  # every node that was seen, and what is made of it
    nodes = [root]
    met = []
    while nodes:
        node = nodes.pop()
        if node in stops:
            met.append(node)
            continue
        for source, _ in node.next_functions:
            if source is None:
                continue
            if source not in users:
                users[source] = []
                nodes.append(source)
            users[source].append(node)
    through = _closure(met, lambda node: users[node])
    beside = []
    for node in through:
        if node in stops or (owns_compiled and _is_compiled_code(node)):
            continue
        sources = [source for source, _ in node.next_functions if source is not None and source not in through]
        beside += [source for source in sources if not _adds_one_number(node, source)]
    below = _closure(beside, lambda node: [source for source, _ in node.next_functions if source is not None])
    return Trace(
        met=tuple(met),
        leaves=tuple(node.variable for node in below if hasattr(node, "variable")),  # pyright: ignore
        is_hidden=any(_is_compiled_code(node) for node in users if node not in stops),
        is_recomputed=any(node.name() == "CheckpointFunctionBackward" for node in users if node not in stops),
    )


def is_made_of(nodes: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether one of the nodes is made of one of the others; not one whose graph is gone."""
    sources = []
    for node in nodes:
        with suppress(RuntimeError):
            sources += [source for source, _ in node.next_functions if source is not None]
    below = _closure(sources, lambda node: [source for source, _ in node.next_functions if source is not None])
    return any(node in below for node in others)


def _closure(start: Sequence[Node], following: Callable[[Node], Sequence[Node]]) -> dict[Node, None]:
    """These nodes and all that follow on them, in the order in which they are found."""
    found = dict.fromkeys(start)
    nodes = list(start)
    while nodes:
        for node in following(nodes.pop()):
            if node not in found:
                found[node] = None
                nodes.append(node)
    return found


def _is_compiled_code(node: Node) -> bool:
    return node.name() == "CompiledFunctionBackward"


def _adds_one_number(node: Node, source: Node) -> bool:
    """Whether a node adds numbers, and this source is one of them: a term of a loss that no other term depends on."""
    if node.name() not in ("AddBackward0", "SubBackward0", "StackBackward0"):
        return False
    outputs = [source] if node.name() == "StackBackward0" else [node, source]
    return all(len(metadata.shape) == 0 for output in outputs for metadata in output._input_metadata)


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

"""Checkpoints of the loop: one file for all ranks, and a file that names the newest; and whether a trainer's are whole.

torch writes a zip with a checksum of every record, and does not look at these when it reads: a run would go on with
another weight.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ted_stream.engine import Ranks
from ted_stream.files import is_remote, join, read_bytes, write_bytes

from .settings import ConfigError

__all__ = [
    "CHECKPOINTS",
    "NEWEST",
    "Frozen",
    "frozen_names",
    "load_checkpoint",
    "load_weights",
    "newest_checkpoint",
    "refuse_damaged",
    "refuse_missing",
    "save_checkpoint",
]

CHECKPOINTS = "checkpoints"  # the folder within that of a run
FORMAT = "ted-stream loop 3"
NEWEST = "newest"


def save_checkpoint(folder: str, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; every rank calls it, rank 0's state is written.

    Args:
        folder: local or a URI.
        name: of the file.
        state: tensors, numbers, text, and nestings of these.
    """

    def write() -> None:
        file = io.BytesIO()
        torch.save({"format": FORMAT, **state}, file)
        write_bytes(join(folder, name), file.getvalue())
        write_bytes(join(folder, NEWEST), name.encode())

    Ranks().on_rank_zero(write)


def newest_checkpoint(folder: str) -> str | None:
    """The path of a folder's newest checkpoint, if it has one."""

    def read() -> str | None:
        try:
            return join(folder, read_bytes(join(folder, NEWEST)).decode())
        except FileNotFoundError:
            return None

    return Ranks().on_rank_zero(read)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: the file is no checkpoint of the loop, of this format, or is damaged.
    """
    content = io.BytesIO(read_bytes(path))
    refuse_damaged(path, content)
    state: dict[str, Any] = {}
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
        found = repr(state.get("format"))
    except Exception as error:  # torch's own for other files share no base, and advise what is not meant here
        found = f"other objects, {type(error).__name__}"
    if found != repr(FORMAT):
        raise ConfigError(
            f"{path} is no checkpoint of format {FORMAT!r} (found: {found}); name one that trainer=loop wrote with "
            "this version, or set trainer=composer for one of Composer."
        )
    return state


def refuse_damaged(path: str, file: IO[bytes]) -> None:
    """Refuse a file of which a bit has changed since torch wrote it, that is cut off, or that torch did not write.

    Args:
        path: or URI, by which the file is named.
        file: its content; read once, and left at its beginning.

    Raises:
        ConfigError: saying what is wrong with it, and from which one the run can go on instead.
    """
    fault = _fault(file)
    file.seek(0)
    if fault is None:
        return
    if not is_remote(path):
        path = os.path.realpath(path)  # Composer names the newest by a link
    before = None if is_remote(path) else _whole_one_before(Path(path))
    instead = "name another with load_path= and autoresume=false"
    if before is not None:
        instead = f"go on from the one before, with autoresume=false load_path={before}"
    raise ConfigError(
        f"{path} {fault}; put it back as it was written, {instead}, or begin again, with autoresume=false and "
        "overwrite=true."
    )


def _fault(file: IO[bytes]) -> str | None:
    """What is wrong with a file that torch should have written; ``None`` where nothing is."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return "is empty, and no checkpoint"
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        return "is no checkpoint: torch writes files of another kind"
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    # A flipped bit may ask for a password or another compression: each has errors of its own.
    except Exception as error:
        return f"is cut off or damaged ({error})"
    return None if damaged is None else f"is damaged: the checksum of {damaged} in it is another"


def _whole_one_before(path: Path) -> Path | None:
    """The checkpoint of the most batches among those beside this one that are whole, and of fewer batches."""

    def batches(name: str) -> int:
        found = re.match(r"ep\d+-ba(\d+)\b", name)
        return int(found[1]) if found else -1

    others = [other for other in path.parent.glob("ep*-ba*.pt") if 0 <= batches(other.name) < batches(path.name)]
    for other in sorted(others, key=lambda other: batches(other.name), reverse=True):
        with other.open("rb") as file:
            if _fault(file) is None:
                return other
    return None


def load_weights(network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint into a network in one piece; what is frozen, and left out, is as it was built.

    Raises:
        RuntimeError: they are of another network.
    """
    told = network.load_state_dict(weights, strict=False)
    missing = {*told.missing_keys} - frozen_names(network)
    if missing or told.unexpected_keys:
        raise RuntimeError(f"missing: {sorted(missing)}, unexpected: {told.unexpected_keys}")


def frozen_names(network: nn.Module) -> set[str]:
    """The parameters that are not trained, by every name that they have."""
    named = network.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


@dataclass(frozen=True)
class Frozen:
    """What a network has beside the weights that are trained, which checkpoints leave out.

    Attributes:
        weights: a digest of the frozen ones: names, shapes, dtypes, and the sum of all their bits.
        adapters: settings of the adapters, as text.
    """

    weights: str
    adapters: str

    @staticmethod
    def of(network: nn.Module) -> Frozen:
        """What a network has, before it is sharded or moved."""
        digest = hashlib.sha256()
        for name, parameter in network.named_parameters():
            # Of a head that is trained beside adapters peft keeps the first, which it never calls.
            if not parameter.requires_grad and ".original_module." not in name:
                bits = parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()])
                told = name, tuple(parameter.shape), parameter.dtype, int(bits.sum(dtype=torch.int64))
                digest.update(repr(told).encode())
        adapters = {
            name: {key: _plain(getattr(config, key, None)) for key in _OF_ADAPTERS}
            for name, config in sorted(getattr(network, "peft_config", {}).items())
        }
        return Frozen(digest.hexdigest(), json.dumps(adapters))

    def refuse_other(self, before: Mapping[str, str], path: str | None = None) -> None:
        """Refuse to put trained weights beside others than they were trained beside.

        Args:
            before: the fields of the one that a checkpoint was written with.
            path: of the checkpoint.

        Raises:
            ConfigError: they differ.
        """
        where = path or "The checkpoint"
        if before["adapters"] != self.adapters:
            raise ConfigError(
                f"{where} was written with the adapters {before['adapters']}, and this run has {self.adapters}; set "
                "model.lora_* as they were, or begin anew, without it and in another folder."
            )
        if before["weights"] != self.weights:
            raise ConfigError(
                f"{where} was written beside other frozen weights than this run loads; put back what model.pretrained "
                "and model.dtype named, or begin anew, without it and in another folder."
            )


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_OF_ADAPTERS = ("r", "lora_alpha", "target_modules", "modules_to_save", "use_rslora", "use_dora")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset, list, tuple)) else value


def refuse_missing(path: str, network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights which are trained: torch would leave the network's own in their place.

    Raises:
        ConfigError: naming one.
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - weights.keys()):
        raise ConfigError(
            f"{path} holds no weights of {missing[0]}, which this run trains: it is of another model. Go on with the "
            "settings that it was written with, or set folder= to another place."
        )

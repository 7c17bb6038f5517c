"""Tokenizers, and shards of tokens: text is tokenized in other processes and written as it comes, in a given order."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ted_stream.export import write_origins
from ted_stream.files import join, read_bytes
from ted_stream.processes import in_order

from .prepared import HASHES
from .records import BadRecordError, Records, Refusals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TOKENIZER_FOLDER",
    "Encoded",
    "Split",
    "bos_id_of",
    "chosen_tokenizer",
    "embeddings_of",
    "load_tokenizer",
    "pad_id",
    "read_lengths",
    "token_encoding",
    "train_tokenizer",
    "write_tokens",
]

TOKENIZER_FOLDER = "tokenizer"
LENGTHS_FILE = "lengths.npy"  # of a split: the tokens of every sample
CHUNK = 512  # records handed to a worker at a time
WORTH = 16  # chunks of which a worker is worth its start


class Encoded(NamedTuple):
    """A sample.

    Attributes:
        columns: the values of its columns, ``input_ids`` among them.
        truncated: whether it lost its end.
        controlled: whether its text holds what the tokenizer takes for one of its special tokens; ``None``: not looked.
    """

    columns: dict[str, Any]
    truncated: bool
    controlled: bool | None = None


Item = tuple[int, Any]  # the number of a record, and what of it is tokenized
Encode = Callable[[Sequence[Item]], list[Encoded | BadRecordError]]


@dataclass(frozen=True)
class Split:
    """What becomes a split.

    Attributes:
        records: that the items are of.
        items: in the order in which they are written.
        count: how many there are.
        label: of a record, by its number; kept in the origins.
    """

    records: Records
    items: Iterable[Item]
    count: int
    label: Callable[[int], int | None] = lambda _: None


def write_tokens(
    folder: Path,
    splits: Mapping[str, Split],
    encode: Encode,
    columns: Mapping[str, str],
    *,
    refusals: Refusals,
    max_length: int,
    workers: int,
    size_limit: int,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int | None], None] = lambda *_: None,
) -> dict[str, dict[str, int]]:
    """Write splits of tokens, their lengths and origins, in the order of their items, whatever the workers.

    Memory holds the samples of a few chunks, and two numbers for each that was written.

    Args:
        folder: of the dataset.
        splits: by name.
        encode: makes samples of items, in a worker: picklable, as items are.
        columns: names and MDS encodings.
        refusals: told of items that cannot be used.
        max_length: of a sample, for messages.
        workers: processes that tokenize, at most; few records are tokenized in this one.
        size_limit: bytes per shard.
        report: told, in a sentence each, how many samples lost their end, and how many hold special tokens.
        progress: told of items done, and how many there are.

    Returns:
        By split ``written``, ``tokens``, ``truncated`` and, where encode looks, ``controlled``.

    Raises:
        ValueError: a record is refused, or nothing is left of a split.
    """
    from streaming import MDSWriter

    total = sum(split.count for split in splits.values())
    chunks = ((name, chunk) for name, split in splits.items() for chunk in _chunks(split.items))
    most = sum(-(-split.count // CHUNK) for split in splits.values())
    encoded = in_order(partial(_of_split, encode), chunks, min(workers, most // WORTH))
    counts = {}
    for name, of_split in groupby(encoded, key=lambda done: done[0][0]):
        split, written, lengths = splits[name], array("q"), array("i")
        seen: Counter[str] = Counter(truncated=0)
        with MDSWriter(out=str(folder / name), columns=dict(columns), size_limit=size_limit, hashes=HASHES) as writer:
            for (_, chunk), samples in of_split:
                for (at, _), sample in zip(chunk, samples, strict=True):
                    if isinstance(sample, BadRecordError):
                        refusals.take(split.records, at, sample)
                        continue
                    writer.write(sample.columns)
                    written.append(at)
                    lengths.append(len(sample.columns["input_ids"]))
                    seen["truncated"] += sample.truncated
                    if sample.controlled is not None:
                        seen["controlled"] += sample.controlled
                progress(len(chunk), total)
        if not written:
            raise ValueError(f"no sample of {name} is left; see what is wrong with the first without --skip-bad.")
        np.save(folder / name / LENGTHS_FILE, np.array(lengths, np.int32))
        origins = ((*split.records.origin(at), split.label(at)) for at in written)
        write_origins(folder / name, origins, key=split.records.key, source=split.records.source)
        if seen["truncated"]:
            report(
                f"{name}: {seen['truncated']} of {len(written)} samples were longer than {max_length} tokens and lost "
                "their end."
            )
        if seen.get("controlled"):
            report(
                f"{name}: {seen['controlled']} of {len(written)} texts hold special tokens of the tokenizer, which "
                "stand in the samples as such. If they are meant as text, as '<s>' in a page is, take them out."
            )
        counts[name] = {"written": len(written), "tokens": sum(lengths), **seen}
    return counts


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    items = iter(items)
    return iter(lambda: list(islice(items, CHUNK)), [])


def _of_split(encode: Encode, chunk: tuple[str, list[Item]]) -> list[Encoded | BadRecordError]:
    return encode(chunk[1])


# Tokenizers


@lru_cache(maxsize=1)
def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved in a folder; loaded once in a process."""
    if multiprocessing.parent_process() is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are workers on all cores
        # A tokenizer needs no torch, which would take a worker most of its time to start; nor advice to install it.
        os.environ |= {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def read_lengths(path: str | os.PathLike[str], split: str) -> NDArray[np.int32]:
    """The tokens of every sample of a prepared dataset's split, (N,) int32 by sample id.

    Args:
        path: the dataset's folder, local or a URI.
        split: its name.

    Raises:
        ValueError: the file is missing, or is no array; an object store raises its own error.
    """
    file = join(join(path, split), LENGTHS_FILE)
    try:
        return np.load(io.BytesIO(read_bytes(file)), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); prepare the dataset again, as this version of ted-stream does it."
        ) from error


def bos_id_of(path: str | os.PathLike[str]) -> int | None:
    """The token with which the tokenizer of a prepared dataset begins a sequence; ``None`` where it has none.

    Args:
        path: the dataset's folder, local or a URI.

    Raises:
        FileNotFoundError: it has no tokenizer in one file; an object store raises its own error.
    """
    from tokenizers import Tokenizer

    folder = join(path, TOKENIZER_FOLDER)
    named = json.loads(read_bytes(join(folder, "tokenizer_config.json"))).get("bos_token")
    token = named["content"] if isinstance(named, dict) else named
    if token is None:
        return None
    return Tokenizer.from_str(read_bytes(join(folder, "tokenizer.json")).decode()).token_to_id(token)


def chosen_tokenizer(
    name: str | None, train_size: int | None, texts: Callable[[], Iterator[str]]
) -> PreTrainedTokenizerBase:
    """A tokenizer by name, or one trained on the corpus.

    Args:
        name: a folder, or a name on the hub; else:
        train_size: its number of tokens.
        texts: the corpus.

    Raises:
        ValueError: both or none are given, or it cannot be loaded or trained.
    """
    if (name is None) == (train_size is None):
        raise ValueError("name one of --tokenizer and --train-tokenizer.")
    if train_size is not None:
        return train_tokenizer(texts(), train_size)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer could be loaded from {name!r}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer: any text can be encoded, nothing is unknown.

    Args:
        texts: the corpus.
        vocab_size: number of tokens, with the 256 bytes and ``<pad>``, ``<bos>``, ``<eos>``.

    Raises:
        ValueError: ``vocab_size`` leaves no room beside bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    least = 256 + len(special)
    if vocab_size < least:
        raise ValueError(f"a vocabulary of {vocab_size} is too small; bytes and special tokens alone take {least}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def embeddings_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings a model needs: more than there are tokens, where ids are left out."""
    return max(tokenizer.get_vocab().values()) + 1


def token_encoding(tokenizer: PreTrainedTokenizerBase) -> str:
    """The MDS encoding of token ids: the smallest signed integers that hold them and -100."""
    dtype = np.int16 if embeddings_of(tokenizer) <= np.iinfo(np.int16).max + 1 else np.int32
    return f"ndarray:{np.dtype(dtype).name}"


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills a batch: that for padding, or where there is none, that at the end of a text.

    Raises:
        ValueError: there is neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ValueError("the tokenizer has neither a pad nor an eos token to fill batches with; name another tokenizer.")

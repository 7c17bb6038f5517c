"""Prompt/response pairs to tokens, with the prompt masked from the loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ted_stream.export import write_origins

from .prepared import DESCRIPTION_FILE, HASHES, Description, new_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "TOKENIZER_FOLDER", "Pair", "encode", "prepare_instructions", "read_pairs", "train_tokenizer"]

IGNORED = -100  # the label that cross entropy leaves out
TOKENIZER_FOLDER = "tokenizer"

# The prompts of Stanford Alpaca (Taori et al. 2023), with and without an input.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Place:
    """Where a sample was read: a line of JSON lines or an item of an array, from 1."""

    path: Path
    unit: Literal["line", "item"]
    number: int

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


@dataclass(frozen=True)
class Pair:
    """One sample as text: what the model is given, what it should answer, and where it was read."""

    prompt: str
    response: str
    where: Place


@dataclass(frozen=True)
class Tokens:
    """One sample as tokens: ``input_ids`` and ``labels`` (n,), labels `IGNORED` on the prompt."""

    input_ids: np.ndarray
    labels: np.ndarray
    truncated: bool
    where: Place


def read_pairs(path: str | Path, *, prompt_field: str = "prompt", response_field: str = "response") -> list[Pair]:
    """Read prompt/response pairs from JSON lines or a JSON array.

    Records with ``instruction`` and ``output`` (Alpaca; ``input`` may be absent or empty) are recognised and put
    into Alpaca's prompt. Other prompts are followed by one newline.

    Args:
        path: the file.
        prompt_field: the field of the prompt.
        response_field: the field of the response.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record is no JSON object, lacks a field, or has an empty response; the message names the
            line (of JSON lines) or the item (of an array) and the fields that are there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}.")
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
        named = [(Place(path, "item", number), record) for number, record in enumerate(records, 1)]
    else:
        named = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = Place(path, "line", number)
            try:
                named.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}).") from error
    if not named:
        raise ValueError(f"{path} holds no records.")
    return [_pair(where, record, prompt_field, response_field) for where, record in named]


def _pair(where: Place, record: object, prompt_field: str, response_field: str) -> Pair:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    if {"instruction", "output"} <= record.keys() and prompt_field not in record:
        response_field = "output"
        fields = {name: record.get(name) or "" for name in ("instruction", "input")}
        prompt = (ALPACA_WITH_INPUT if fields["input"] else ALPACA).format(**fields)
    else:
        for name in (prompt_field, response_field):
            if name not in record:
                raise ValueError(
                    f"{where}: field {name!r} is missing; present: {', '.join(map(repr, sorted(record)))}. "
                    "Name the right ones with --prompt-field and --response-field."
                )
        prompt = record[prompt_field]
        if not isinstance(prompt, str):
            raise ValueError(f"{where}: field {prompt_field!r} is {type(prompt).__name__}, expected text.")
        prompt += "\n"
    response = record[response_field]
    if not isinstance(response, str):
        raise ValueError(f"{where}: field {response_field!r} is {type(response).__name__}, expected text.")
    if not response.strip():
        raise ValueError(
            f"{where}: field {response_field!r} is empty, so nothing could be learnt; remove it or fill it."
        )
    return Pair(prompt, response, where)


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


def encode(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Tokens], list[Pair]]:
    """Tokenize pairs as [bos] prompt response eos; the response and its eos are the targets.

    Prompt and response are tokenized apart, so that no token spans both. Longer samples lose their end.

    Args:
        pairs: the text.
        tokenizer: with an eos token; a bos token is put in front where there is one.
        max_length: the longest sample, in tokens.

    Returns:
        The samples, and the pairs left out because no token of their response fits.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no eos token, so a response could not end; name another tokenizer.")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = tokenizer([pair.prompt for pair in pairs], add_special_tokens=False)["input_ids"]
    responses = tokenizer([pair.response for pair in pairs], add_special_tokens=False)["input_ids"]
    kept, dropped = [], []
    dtype = token_dtype(len(tokenizer))
    for pair, prompt, response in zip(pairs, prompts, responses, strict=True):  # pyright: ignore
        head = [*start, *prompt]
        if len(head) >= max_length:
            dropped.append(pair)
            continue
        ids = np.array([*head, *response, eos], dtype)
        labels = ids.copy()
        labels[: len(head)] = IGNORED
        kept.append(Tokens(ids[:max_length], labels[:max_length], len(ids) > max_length, pair.where))
    return kept, dropped


def token_dtype(vocab_size: int) -> type[np.signedinteger]:
    """The smallest signed integer that holds token ids and `IGNORED`."""
    return np.int16 if vocab_size <= np.iinfo(np.int16).max + 1 else np.int32


def prepare_instructions(
    out: str | Path,
    train: str | Path,
    *,
    test: str | Path | None = None,
    test_fraction: float = 0.05,
    prompt_field: str = "prompt",
    response_field: str = "response",
    tokenizer: str | None = None,
    train_tokenizer_size: int | None = None,
    max_length: int = 512,
    seed: int = 0,
    size_limit: int = 1 << 22,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Description:
    """Write prompt/response pairs as a prepared dataset of tokens, with the tokenizer beside them.

    Args:
        out: the dataset's folder; the tokenizer is saved in its ``tokenizer/``.
        train: JSON lines or a JSON array, see `read_pairs`.
        test: the same for the test split; None takes ``test_fraction`` of ``train`` by ``seed``.
        test_fraction: share of ``train`` that becomes the test split when ``test`` is None.
        prompt_field: the field of the prompt.
        response_field: the field of the response.
        tokenizer: a folder or a name on the hub; else:
        train_tokenizer_size: size of a byte-level BPE tokenizer trained on the training split.
        max_length: longest sample in tokens; longer ones are cut at the end and counted, and those of which
            no response token is left are dropped and counted.
        seed: of the test split and of the stored order.
        size_limit: bytes per shard.
        overwrite: replace a finished dataset.
        report: told, in sentences, what was cut and dropped.

    Raises:
        FileExistsError: ``out`` is taken (see `new_dataset`).
        FileNotFoundError: an input file does not exist.
        ValueError: a record cannot be used, or the settings contradict each other.
    """
    if (tokenizer is None) == (train_tokenizer_size is None):
        raise ValueError("name one of --tokenizer and --train-tokenizer.")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a sample needs at least 2 tokens.")
    if test is None and not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number between 0 and 1.")
    with new_dataset(out, overwrite=overwrite) as folder:
        fields = {"prompt_field": prompt_field, "response_field": response_field}
        pairs = read_pairs(train, **fields)
        order = np.random.default_rng(seed).permutation(len(pairs))
        if test is None:
            cut = max(1, round(test_fraction * len(pairs)))
            if cut >= len(pairs):
                raise ValueError(f"{train} has {len(pairs)} records, too few to set {cut} aside for testing.")
            splits = {"train": [pairs[i] for i in order[cut:]], "test": [pairs[i] for i in order[:cut]]}
        else:
            splits = {"train": [pairs[i] for i in order], "test": read_pairs(test, **fields)}
        if tokenizer is not None:
            from transformers import AutoTokenizer

            try:
                chosen = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError) as error:
                raise ValueError(f"no tokenizer could be loaded from {tokenizer!r}: {error}") from error
        else:
            assert train_tokenizer_size is not None
            corpus = (text for pair in splits["train"] for text in (pair.prompt, pair.response))
            chosen = train_tokenizer(corpus, train_tokenizer_size)
        chosen.save_pretrained(str(folder / TOKENIZER_FOLDER))
        counts = {
            split: _write_split(folder / split, split, pairs, chosen, max_length, size_limit, report)
            for split, pairs in splits.items()
        }
        pad = chosen.pad_token_id if chosen.pad_token_id is not None else chosen.eos_token_id
        assert isinstance(pad, int)
        description = Description(
            kind="instructions",
            name=Path(train).stem,
            samples={split: count["written"] for split, count in counts.items()},
            vocab_size=len(chosen),
            max_length=max_length,
            pad_id=pad,
            notes={"seed": seed, "source": str(train), "tokenizer": tokenizer or "trained", "counts": counts},
        )
        (folder / DESCRIPTION_FILE).write_text(description.to_json())
        return description


def _write_split(
    folder: Path,
    split: str,
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    size_limit: int,
    report: Callable[[str], None],
) -> Mapping[str, Any]:
    from streaming import MDSWriter

    samples, dropped = encode(pairs, tokenizer, max_length)
    cut = sum(sample.truncated for sample in samples)
    if cut:
        report(f"{split}: {cut} of {len(pairs)} samples were longer than {max_length} tokens and lost their end.")
    if dropped:
        report(
            f"{split}: {len(dropped)} of {len(pairs)} samples were dropped, since their prompt alone fills "
            f"{max_length} tokens (the first: {dropped[0].where}); raise --max-length to keep them."
        )
    if not samples:
        raise ValueError(f"no sample of {split} fits {max_length} tokens; raise --max-length.")
    encoding = f"ndarray:{np.dtype(token_dtype(len(tokenizer))).name}"
    columns = {"input_ids": encoding, "labels": encoding}
    with MDSWriter(out=str(folder), columns=columns, size_limit=size_limit, hashes=HASHES) as writer:
        for sample in samples:
            writer.write({"input_ids": sample.input_ids, "labels": sample.labels})
    source = samples[0].where
    origins = ((sample.where.path.name, str(sample.where.number), None) for sample in samples)
    write_origins(folder, origins, key=source.unit, source=str(source.path.parent))
    tokens = sum(len(sample.input_ids) for sample in samples)
    return {"written": len(samples), "tokens": tokens, "truncated": cut, "dropped": len(dropped)}

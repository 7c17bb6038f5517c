"""Instructions and chats to tokens, with all but the answers masked from the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .chats import ChatTokens, check_template, encode_chats
from .forms import Chat, Forms, Pair
from .prepared import DESCRIPTION_FILE, Description, new_dataset
from .records import BadRecordError, Records, Refusals, good_records, hub_name, hub_records, json_records
from .tokens import (
    TOKENIZER_FOLDER,
    Encoded,
    Item,
    Split,
    chosen_tokenizer,
    embeddings_of,
    load_tokenizer,
    pad_id,
    token_encoding,
    write_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "prepare_instructions"]

IGNORED = -100  # the label that cross entropy leaves out

Files = str | Path | Sequence[str | Path]
Progress = Callable[[str, int, int | None], None]  # stage, samples just done, total if known


@dataclass(frozen=True)
class _Source:
    """Records of one form; of the good ones the numbers, ascending."""

    records: Records
    form: str
    good: np.ndarray

    def texts(self, forms: Forms, order: np.ndarray) -> Iterator[str]:
        """All text of these records, to train a tokenizer on."""
        for _, record in self.records.read(order.tolist()):
            text = forms.text(record)
            yield from (text.prompt, text.response) if isinstance(text, Pair) else _contents(text)


def _contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.messages]


@dataclass(frozen=True)
class _Encoder:
    """Records of one form to tokens, in any process.

    Attributes:
        tokenizer: its folder.
        encoding: of the tokens in MDS.
        forms: of the records.
        max_length: the longest sample, in tokens.
    """

    tokenizer: str
    encoding: str
    forms: Forms
    max_length: int

    def __call__(self, chunk: Sequence[Item]) -> list[Encoded | BadRecordError]:
        """Tokenize records, which have text."""
        tokenizer = load_tokenizer(self.tokenizer)
        texts: list[Any] = [self.forms.text(record) for _, record in chunk]
        encode: Any = encode_chats if isinstance(texts[0], Chat) else _encode_pairs
        dtype = np.dtype(self.encoding.rpartition(":")[2])
        return [self._cut(one, dtype) for one in encode(texts, tokenizer)]

    def _cut(self, found: ChatTokens | BadRecordError, dtype: np.dtype) -> Encoded | BadRecordError:
        if isinstance(found, BadRecordError):
            return found
        ids = np.array(found.ids, dtype)
        labels = np.full(len(ids), IGNORED, dtype)
        for start, end in found.answers:
            labels[start:end] = ids[start:end]
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        if (labels[1:] == IGNORED).all():  # nothing predicts the first token
            return BadRecordError(
                "too long",
                f"what comes before its first answer fills {self.max_length} tokens, so no token of an answer is "
                "left; raise --max-length.",
            )
        columns = {"input_ids": ids, "labels": labels}
        return Encoded(columns, len(found.ids) > self.max_length, found.controlled)


def _encode_pairs(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[ChatTokens]:
    """Tokenize pairs as [bos] prompt response eos; the response and its eos are the answer.

    Prompt and response are tokenized apart, so that no token spans both. A prompt that begins with bos, and a response
    that ends with eos, get no second one.
    """
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    unknown: Any = tokenizer.unk_token_id  # which is what has no token, but in GPT-2's
    special = {bos, eos, *tokenizer.all_special_ids} - ({unknown} - {bos, eos})
    whole: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    prompts: Any = tokenizer([pair.prompt for pair in pairs], **whole)["input_ids"]
    responses: Any = tokenizer([pair.response for pair in pairs], **whole)["input_ids"]
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        head = prompt if bos is None or prompt[:1] == [bos] else [bos, *prompt]
        tail = response if response[-1:] == [eos] else [*response, eos]
        text = [*head[0 if bos is None else 1 :], *tail[:-1]]
        found.append(ChatTokens(head + tail, [(len(head), len(head) + len(tail))], not special.isdisjoint(text)))
    return found


def prepare_instructions(
    out: str | Path,
    train: Files | None = None,
    *,
    test: Files | None = None,
    hub: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    test_fraction: float = 0.05,
    prompt_field: str = "prompt",
    response_field: str = "response",
    ignored_fields: Sequence[str] = (),
    tokenizer: str | None = None,
    train_tokenizer_size: int | None = None,
    chat_template: str | Path | None = None,
    max_length: int = 512,
    skip_bad: bool = False,
    workers: int = 1,
    seed: int = 0,
    size_limit: int = 1 << 22,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Description:
    """Write instructions or chats as a prepared dataset of tokens, with the tokenizer beside them.

    Records are JSON objects of one form, which is known by their fields: chats (``messages`` with ``role`` and
    ``content``, or ShareGPT's ``conversations`` with ``from`` and ``value``), Alpaca's (``instruction``, ``output``,
    perhaps ``input``), which get Alpaca's prompt, or a prompt, which is followed by one newline, and a response.
    Chats are put into text by the tokenizer's chat template (see `encode_chats`), the others as [bos] prompt response
    eos. Of a sample the answers are targets: in chats every turn of the assistant.

    A record that cannot be used is refused, with its file and line: no JSON, another form than those before it, a
    field missing, of a wrong type, empty or there twice, turns in another order, a field such as ``system`` or
    ``context`` that its form leaves out, or so long before its first answer that no token of an answer is left. With
    ``skip_bad`` all of these are left out, counted, and listed in ``skipped.jsonl``.

    Memory holds a few chunks of samples; of JSON lines it holds no text, JSON arrays are held as they are.

    Args:
        out: the dataset's folder; the tokenizer is saved in its ``tokenizer/``.
        train: JSON lines or JSON arrays, one file or several; or else:
        test: the same for the test split; None takes ``test_fraction`` of ``train`` by ``seed``.
        hub: a dataset that ``datasets`` can load, ``name`` or ``name:config``, on the hub or a local folder.
        split: of ``hub``, to train on.
        test_split: of ``hub``, to test on; None takes ``test_fraction`` of ``split``.
        test_fraction: share of the records that becomes the test split where there is none.
        prompt_field: the field of the prompt.
        response_field: the field of the response.
        ignored_fields: fields that are left out, though an answer may hang on them; others that are, are told.
        tokenizer: a folder or a name on the hub; else:
        train_tokenizer_size: size of a byte-level BPE tokenizer trained on the training split.
        chat_template: a file with a Jinja template, which takes the place of the tokenizer's.
        max_length: longest sample in tokens; longer ones are cut at the end, and counted.
        skip_bad: leave bad records out.
        workers: processes that tokenize, at most; the dataset is the same for any number.
        seed: of the test split and of the stored order.
        size_limit: bytes per shard.
        overwrite: replace a finished dataset.
        report: told, in sentences, what was cut and left out.
        progress: told the stage, how many records were just done, and the total where known.

    Raises:
        FileExistsError: ``out`` is taken (see `new_dataset`).
        FileNotFoundError: an input file does not exist.
        ValueError: a record cannot be used, or the settings contradict each other.
    """
    if (train is None) == (hub is None):
        raise ValueError("name one of --train and --hub.")
    if hub is not None and test is not None:
        raise ValueError("--test goes with --train; name a split of --hub with --test-split.")
    if hub is None and (test_split is not None or split != "train"):
        raise ValueError("--split and --test-split are of --hub; name the files of --train with --test.")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a sample needs at least 2 tokens.")
    has_test = (test if hub is None else test_split) is not None
    if not has_test and not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number between 0 and 1.")
    forms, refusals = Forms(prompt_field, response_field, tuple(ignored_fields)), Refusals(skip=skip_bad)
    unused: Counter[str] = Counter()

    def read(files: Files | None, of_hub: str | None) -> _Source:
        if hub is not None and of_hub is not None:
            records = hub_records(*hub_name(hub), of_hub)
        else:
            records = json_records(_paths(files))
        return _checked(records, forms, refusals, unused, lambda count: progress("read", count, None))

    with new_dataset(out, overwrite=overwrite) as folder:
        first = read(train, split)
        order = first.good[np.random.default_rng(seed).permutation(len(first.good))]
        if has_test:
            second = read(test, test_split)
            splits = {"train": (first, order), "test": (second, second.good)}
        else:
            cut = max(1, round(test_fraction * len(order)))
            if cut >= len(order):
                raise ValueError(
                    f"{first.records.source} has {len(order)} records, too few to set {cut} aside for testing."
                )
            splits = {"train": (first, order[cut:]), "test": (first, order[:cut])}
        if unused:
            named = ", ".join(f"{name!r} of {count}" for name, count in unused.most_common())
            report(f"Fields that enter no text, and the records that have them: {named}.")
        chosen = chosen_tokenizer(tokenizer, train_tokenizer_size, lambda: first.texts(forms, splits["train"][1]))
        name = tokenizer or "trained"
        _prepare_tokenizer(chosen, name, chat_template, {source.form for source, _ in splits.values()})
        chosen.save_pretrained(str(folder / TOKENIZER_FOLDER))
        encoding = token_encoding(chosen)
        encode = _Encoder(str(folder / TOKENIZER_FOLDER), encoding, forms, max_length)
        counts = write_tokens(
            folder,
            {
                of: Split(source.records, source.records.read(rows.tolist()), len(rows))
                for of, (source, rows) in splits.items()
            },
            encode,
            {"input_ids": encoding, "labels": encoding},
            refusals=refusals,
            max_length=max_length,
            workers=workers,
            size_limit=size_limit,
            report=report,
            progress=partial(progress, "tokenize"),
        )
        files = _paths(train)
        description = Description(
            kind="instructions",
            name=Path(files[0]).stem if files else Path(str(hub)).name,
            samples={of: count["written"] for of, count in counts.items()},
            vocab_size=embeddings_of(chosen),
            max_length=max_length,
            pad_id=pad_id(chosen),
            notes={
                "seed": seed,
                "source": hub or " ".join(map(str, files)),
                "form": first.form,
                "tokenizer": name,
                "counts": counts,
                "skipped": refusals.finish(folder, report),
            },
        )
        (folder / DESCRIPTION_FILE).write_text(description.to_json())
        return description


def _paths(files: Files | None) -> Sequence[str | Path]:
    if files is None:
        return ()
    return [files] if isinstance(files, (str, Path)) else files


def _checked(
    records: Records, forms: Forms, refusals: Refusals, unused: Counter[str], progress: Callable[[int], None]
) -> _Source:
    """Records of one form, that of the first good one; fields of theirs that enter no text are counted."""
    first: list[str] = []

    def look(at: int, record: Any) -> None:
        forms.text(record)
        form = forms.of(record)
        first[:] = first or [form, records.where(at)]
        if form != first[0]:
            raise BadRecordError("other form", f"it has the form {form!r}, but {first[1]}, {first[0]!r}; keep one.")
        unused.update(forms.unused(record, form))

    good = good_records(records, look, refusals, progress)
    return _Source(records, first[0], good)


def _prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, name: str, chat_template: str | Path | None, forms: set[str]
) -> None:
    """Give a tokenizer its chat template, and refuse one that these forms cannot be tokenized with."""
    has_chats = bool(forms & {"messages", "conversations"})
    if chat_template is not None:
        if not has_chats:
            raise ValueError(
                f"--chat-template is for chats, but the records have the form {min(forms)!r}; leave it out."
            )
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    if has_chats:
        check_template(tokenizer, name)
    pad_id(tokenizer)
    if forms - {"messages", "conversations"} and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos token, so a response could not end; name another tokenizer.")

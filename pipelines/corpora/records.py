"""Records of a text corpus: where they are read, and what becomes of those that cannot be used."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ted_stream.export.origins import KeyKind

__all__ = [
    "SKIPPED",
    "BadRecordError",
    "Lines",
    "Records",
    "Refusals",
    "good_records",
    "hub_name",
    "hub_records",
    "json_records",
]

SKIPPED = "skipped.jsonl"
"""In a dataset's folder, where records were left out: file, line (or item, or row), kind and reason of each."""
_STEP = 1024  # records between two calls of what is told of progress
_UNITS: dict[KeyKind, str] = {"line": "line", "item": "item", "index": "row"}


class BadRecordError(ValueError):
    """A record that cannot be used.

    Attributes:
        kind: in a word or two, by which such records are counted.
        why: what is wrong with it, and what can be done.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(kind, why)
        self.kind = kind
        self.why = why

    def __str__(self) -> str:
        return self.why


class Records(ABC):
    """The records of a split, numbered from 0 as they lie there, and read when they are asked for.

    Attributes:
        key: what names a record within its file.
        source: where its files are, for people.
    """

    key: KeyKind
    source: str

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, order: Iterable[int]) -> Iterator[tuple[int, object]]:
        """Numbers of records with what these are: JSON values, or the error of one that cannot be read."""

    @abstractmethod
    def origin(self, at: int) -> tuple[str | None, str]:
        """File, relative to the source, and key of a record (see `write_origins`)."""

    def place(self, at: int) -> dict[str, str | int]:
        """Where a record is, for people: its file and its number there."""
        file, key = self.origin(at)
        return {"file": self.source if file is None else str(Path(self.source, file)), _UNITS[self.key]: int(key)}

    def where(self, at: int) -> str:
        """The same in words."""
        (_, file), (unit, number) = self.place(at).items()
        return f"{file}, {unit} {number}"


class _Files(Records):
    """Records of one or several files; of each, in which it lies and its number there, from 1."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        folders = [os.path.abspath(path.parent) for path in paths]
        self.source = os.path.commonpath(folders) if len(paths) > 1 else str(paths[0].parent)
        self._names = [os.path.relpath(path, self.source) for path in paths]
        self._files = array("i")
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def origin(self, at: int) -> tuple[str | None, str]:
        """(see Records)."""
        return self._names[self._files[at]], str(self._numbers[at])


class Lines(_Files):
    """Files with a record per line; of each line its place alone is held in memory.

    Empty lines are none, but are counted.

    Args:
        paths: UTF-8 text.
        parse: from a line without its end to a record; raises `BadRecordError`.
        heading: how many lines are left out at the beginning of each file.
    """

    key: KeyKind = "line"

    def __init__(
        self,
        paths: Sequence[Path],
        parse: Callable[[str], object],
        *,
        heading: int = 0,
    ) -> None:
        super().__init__(paths)
        self._parse = parse
        self._offsets = array("q")
        for number, path in enumerate(paths):
            offset = 0
            with path.open("rb") as file:
                for line_number, line in enumerate(file, 1):
                    if line_number > heading and line.strip(b" \r\n"):
                        self._files.append(number)
                        self._numbers.append(line_number)
                        self._offsets.append(offset)
                    offset += len(line)

    def read(self, order: Iterable[int]) -> Iterator[tuple[int, object]]:
        """(see Records)."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self.paths]
            for at in order:
                file = files[self._files[at]]
                file.seek(self._offsets[at])
                yield at, self._record(file.readline())

    def _record(self, line: bytes) -> object:
        try:
            return self._parse(line.decode("utf-8-sig").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            return BadRecordError("not UTF-8", f"not UTF-8 text ({error.reason} at byte {error.start}).")
        except BadRecordError as error:
            return error


class _Items(_Files):
    """Files with a JSON array of records each, held in memory."""

    key: KeyKind = "item"

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self._items: list[Any] = []
        for number, path in enumerate(paths):
            try:
                text = path.read_text(encoding="utf-8-sig")
                items = json.loads(text, object_pairs_hook=_once_each)
            except BadRecordError as error:
                raise ValueError(f"{path}: {error.why}") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
            self._items += map(_encodable, items) if "\\u" in text else items
            self._files.extend([number] * len(items))
            self._numbers.extend(range(1, len(items) + 1))

    def read(self, order: Iterable[int]) -> Iterator[tuple[int, object]]:
        """(see Records)."""
        return ((at, self._items[at]) for at in order)


class _Rows(Records):
    """Rows of a dataset of Hugging Face's ``datasets``; classes are given by their names."""

    key: KeyKind = "index"

    def __init__(self, rows: Any, source: str) -> None:
        from datasets import ClassLabel

        self.source = source
        self._rows = rows
        self._classes = {name: kind for name, kind in rows.features.items() if isinstance(kind, ClassLabel)}

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, order: Iterable[int]) -> Iterator[tuple[int, object]]:
        """(see Records)."""
        for at in order:
            row = dict(self._rows[at])
            for name, kind in self._classes.items():
                if row[name] is not None and row[name] >= 0:  # -1 stands for a label that is not told
                    row[name] = kind.int2str(row[name])
            yield at, row

    def origin(self, at: int) -> tuple[str | None, str]:
        """(see Records)."""
        return None, str(at)


def _encodable(record: object) -> object:
    """The record, unless a text in it has no encoding: JSON can escape half of a pair of surrogates."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return BadRecordError("not UTF-8", f"{error.object[error.start]!a} in it is no character; correct it.")
    return record


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields, each of which has one value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name in found if sum(name == other for other, _ in pairs) > 1)
        raise BadRecordError("field twice", f"an object in it has the field {name!r} twice; keep one.")
    return found


def _parsed(line: str) -> object:
    try:
        record = json.loads(line, object_pairs_hook=_once_each)
        return _encodable(record) if "\\u" in line else record
    except json.JSONDecodeError as error:
        raise BadRecordError("not JSON", f"not JSON ({error.msg}, at character {error.pos + 1}).") from error


def json_records(paths: Sequence[str | Path]) -> Records:
    """Records of JSON lines, or of JSON arrays; arrays are held in memory.

    Args:
        paths: one file or several, all of one kind.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there are no records, an array is not JSON, both kinds are given, or a file twice.
    """
    found = [Path(path) for path in paths]
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}.")
        if found.count(path) > 1:
            raise ValueError(f"{path} is given twice; name each file once.")
    arrays = [path for path in found if _begins_array(path)]
    if arrays and len(arrays) < len(found):
        lines = next(path for path in found if path not in arrays)
        raise ValueError(f"{arrays[0]} is a JSON array, {lines} JSON lines; bring all files into one of these forms.")
    records = _Items(found) if arrays else Lines(found, _parsed)
    if not len(records):
        raise ValueError(f"{' and '.join(map(str, found))} holds no records.")
    return records


def _begins_array(path: Path) -> bool:
    with path.open("rb") as file:
        return (
            next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        )


def hub_name(text: str) -> tuple[str, str | None]:
    """Name and configuration of ``name`` or ``name:config``; a name may be that of a folder."""
    name, _, config = (text, "", "") if Path(text).exists() else text.partition(":")
    return name, config or None


def hub_records(name: str, config: str | None, split: str) -> Records:
    """Rows of a dataset that ``datasets.load_dataset`` finds: on the hub, in its cache, or in a local folder.

    Args:
        name: on the hub, or a folder.
        config: one of its configurations; None where it has one.
        split: one of its splits, or a slice of one, as in ``train[:1000]``.

    Raises:
        ValueError: it cannot be loaded, or has no rows.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    told = f"{name}:{config}" if config else name
    try:
        rows: Any = load_dataset(name, config, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"datasets could not load the split {split!r} of {told}: {error}") from error
    if not len(rows):
        raise ValueError(f"the split {split!r} of {told} has no rows.")
    return _Rows(rows, f"{told}, {split}")


class Refusals:
    """Bad records: the first is refused, or all are left out, counted and listed.

    Args:
        skip: leave them out.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._taken: list[tuple[int, int, BadRecordError]] = []
        self._sources: list[Records] = []

    def take(self, records: Records, at: int, error: BadRecordError) -> None:
        """Refuse a record, or note that it is left out.

        Raises:
            ValueError: saying where it is and what is wrong, if bad records are refused.
        """
        if not self._skip:
            hint = "(--skip-bad leaves such records out, counts and lists them.)"
            raise ValueError(f"{records.where(at)}: {error.why} {hint}") from error
        if records not in self._sources:
            self._sources.append(records)
        self._taken.append((self._sources.index(records), at, error))

    def finish(self, folder: Path, report: Callable[[str], None]) -> dict[str, int]:
        """List what was left out in `SKIPPED`, in the order of the files, and tell how many.

        Returns:
            How many records of each kind.
        """
        counts = Counter(error.kind for *_, error in self._taken)
        if self._taken:
            with (folder / SKIPPED).open("w", encoding="utf-8") as file:
                for source, at, error in sorted(self._taken, key=lambda taken: taken[:2]):
                    entry = {**self._sources[source].place(at), "kind": error.kind, "why": error.why}
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            report(f"Records left out: {counts.total()} ({kinds}); {SKIPPED} in the dataset's folder lists them.")
        return dict(counts.most_common())


def good_records(
    records: Records, look: Callable[[int, object], None], refusals: Refusals, progress: Callable[[int], None]
) -> NDArray[np.int64]:
    """Look at all records, in the order of their files.

    Args:
        records: all of a split.
        look: told a record's number and the record; raises `BadRecordError` where it cannot be used.
        refusals: told of these.
        progress: told how many were just looked at.

    Returns:
        The numbers of the good ones, ascending.

    Raises:
        ValueError: one is refused, or none is good.
    """
    good, since = array("q"), 0
    for at, record in records.read(range(len(records))):
        try:
            look(at, record)
            good.append(at)
        except BadRecordError as error:
            refusals.take(records, at, error)
        since += 1
        if since == _STEP:
            progress(since)
            since = 0
    progress(since)
    if not good:
        raise ValueError(
            f"no record of {records.source} can be used; see what is wrong with the first without --skip-bad."
        )
    return np.array(good, np.int64)

"""The project's documents, their blocks of code, and what runs each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)

# Documents whose blocks are all run by one test, which fails where there are others than it knows.
ELSEWHERE = {
    "ted_stream/export/README.md": "tests/export/test_export_readme.py::test_commands_and_code",
    "ted_stream/methods/README.md": "tests/methods/test_own_method.py::test_it_keeps_all_of_it",
    "ted_stream/trainers/foundry/README.md": "tests/trainers/test_foundry.py::test_the_readme",
}


def _found() -> Iterator[str]:
    for folder, folders, files in os.walk(ROOT):  # which does not follow ted_stream/pipelines
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ("runs", "data"))
        yield from (
            (Path(folder) / name).relative_to(ROOT).as_posix()
            for name in sorted(files)
            if name.endswith(".md") and name != "CHANGELOG.md"
        )


DOCUMENTS = tuple(_found())


@dataclass(frozen=True)
class Block:
    """A fenced block, the number-th of its document."""

    document: str
    number: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.document}, block {self.number}"


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks_of(document: str) -> list[Block]:
    found = enumerate(FENCE.findall(text_of(document)))
    return [Block(document, number, language, code) for number, (language, code) in found]


ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


@dataclass(frozen=True)
class Given:
    """What an entry may use: a folder that it runs in, and the fixtures of pytest."""

    folder: Path
    fixture: Callable[[str], Any]


@dataclass(frozen=True)
class Entry:
    """What runs a block."""

    run: Callable[[str, Given], None]
    long: bool


@dataclass
class Entries:
    """What runs the blocks of a language, each known by its document and words that no other block there has."""

    language: str
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def of(self, document: str, words: str, *, long: bool = False) -> Callable[[Any], Any]:
        def add(run: Callable[[str, Given], None]) -> Callable[[str, Given], None]:
            assert (document, words) not in self.entries
            self.entries[document, words] = Entry(run, long)
            return run

        return add

    def for_(self, block: Block) -> list[Entry]:
        of_document = [(words, entry) for (name, words), entry in self.entries.items() if name == block.document]
        return [entry for words, entry in of_document if words in block.code]

    def cases(self) -> list[Any]:
        """Every block of the language, marked as long where its entry is."""
        blocks = [block for block in ALL_BLOCKS if block.language == self.language]
        blocks = [block for block in blocks if block.document not in ELSEWHERE]
        return [
            pytest.param(block, id=str(block), marks=[pytest.mark.long] * any(entry.long for entry in self.for_(block)))
            for block in blocks
        ]

    def run(self, block: Block, given: Given) -> None:
        found = self.for_(block)
        assert len(found) == 1, f"{block} has {len(found)} entries that run it, but must have one:\n{block.code}"
        found[0].run(block.code, given)

    def unused(self) -> list[tuple[str, str]]:
        """Entries without a block."""
        return [
            (document, words)
            for document, words in self.entries
            if not any(block.document == document and words in block.code for block in ALL_BLOCKS)
        ]


def swapped(code: str, replacements: dict[str, str]) -> str:
    """The code with stand-ins for what it names; each must be there."""
    for old, new in replacements.items():
        assert old in code, old
        code = code.replace(old, new)
    return code

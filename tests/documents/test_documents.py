"""What every document must be: its links lead somewhere, its tables render, its blocks are run."""

import ast
import re

import pytest
from documents import ALL_BLOCKS, DOCUMENTS, ELSEWHERE, FENCE, ROOT, text_of

MOST_BYTES = 8_000  # of the README, which is for the first five minutes
MOST_LINES = 10  # of a block of Python there


def prose(document: str) -> str:
    """The text without its blocks."""
    return FENCE.sub("", text_of(document))


def anchors(document: str) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def cells(row: str) -> int:
    """As many as a row of a table has; a bar in code parts cells too, unless it is escaped."""
    return len(re.findall(r"(?<!\\)\|", row.strip())) - 1


def test_all_documents_are_found() -> None:
    assert {"README.md", "ted_stream/README.md", "pipelines/corpora/README.md"} <= set(DOCUMENTS)
    assert not any(document.startswith((".", "ted_stream/pipelines/")) for document in DOCUMENTS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < MOST_BYTES
    for block in ALL_BLOCKS:
        if block.document == "README.md":
            assert len(block.code.splitlines()) <= MOST_LINES, block


@pytest.mark.parametrize("document", DOCUMENTS)
def test_begins_with_the_only_heading_of_its_level(document: str) -> None:
    assert text_of(document).startswith("# ")
    assert len(re.findall(r"^# ", prose(document), flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"]\(([^)\s]+)\)", prose(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document} links to {link}"
        assert ROOT in target.resolve().parents, f"{document} links to {link}, which is not of the project"
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), f"{document} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_render(document: str) -> None:
    """A header, a line of dashes, and rows of as many cells; with an empty line before and after."""
    lines = ["", *prose(document).splitlines(), ""]
    at = 0
    while at < len(lines):
        if not lines[at].startswith("|"):
            at += 1
            continue
        end = at
        while lines[end].startswith("|"):
            end += 1
        rows = lines[at:end]
        assert lines[at - 1] == "", f"{document}: a table without an empty line before it, {rows[0]}"
        assert lines[end] == "", f"{document}: a table without an empty line after it, {rows[-1]}"
        assert len(rows) > 2, f"{document}: {rows} is no table"
        assert re.fullmatch(r"\|(:?-+:?\|)+", rows[1].replace(" ", "")), f"{document}: {rows[1]} under a header"
        for row in rows:
            assert row.endswith("|"), f"{document}: {row}"
            assert cells(row) == cells(rows[0]), f"{document}: {row}"
        at = end


def test_blocks_are_of_languages_that_are_run() -> None:
    """Blocks without a language are pictures; all else has an entry in one of the tests of this folder.

    But for one: where Ray is installed, `test_a_job_of_ray` runs what needs it.
    """
    (ray,) = [block for block in ALL_BLOCKS if block.language == "py"]
    assert ray.document == "ted_stream/export/README.md"
    assert {block.language for block in ALL_BLOCKS} == {"python", "console", "py", "yaml", ""}
    assert {block.document for block in ALL_BLOCKS if block.language == "yaml"} <= ELSEWHERE.keys()
    for block in ALL_BLOCKS:
        if not block.language:
            assert not re.search(r"^(ted-stream|make|pip|from|import) ", block.code, flags=re.MULTILINE), block


@pytest.mark.parametrize(("document", "test"), ELSEWHERE.items())
def test_what_is_run_elsewhere(document: str, test: str) -> None:
    assert document in DOCUMENTS
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

"""What skip-lists, runs and manifests show of themselves in a notebook."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import highest_of, layout_of, make_run

from ted_stream.export import open_manifest, read_findings
from ted_stream.showing import html_table, kept_of, printable
from ted_stream.skip_list import SkipList

HOSTILE = "<script>alert('1')</script> & more"


class Tags(HTMLParser):
    """The tags and the text of a page; refuses what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def make_list() -> SkipList:
    layout = layout_of(2000)
    weights = np.linspace(0.5, 2, 1500, dtype=np.float32)
    pruned, words = np.arange(0, 2000, 4), {"epoch": 3, "keep_ratio": 0.75, "method": HOSTILE, "run": "r"}
    return SkipList.from_pruned_ids(layout, pruned, **words, weights=weights)


def test_a_skip_list() -> None:
    skip_list = make_list()
    assert repr(skip_list) == (
        f"SkipList(epoch=3, method={HOSTILE!r}, run='r', keep_ratio=0.75, kept=1500, samples=2000)"
    )
    found = Tags(skip_list._repr_html_())
    assert found.tags == {"div", "b", "table", "tr", "td"}
    assert found.cells == [
        *("Skip-list of epoch 3", "method", HOSTILE, "run", "r", "kept", "1,500 of 2,000 (75.0%)", "asked for"),
        *("75.0%", "shards", "4", "weights", "0.5 to 2"),
    ]
    assert "weights" not in replace(skip_list, weights=None)._repr_html_()


def test_a_run_and_its_manifest(tmp_path: Path) -> None:
    make_run(tmp_path, layout_of(40), choose=highest_of(0.5), epochs=3)
    found = read_findings(tmp_path)
    shown = Tags(found._repr_html_())
    assert shown.cells[0] == str(tmp_path)
    rows = re.findall(r"<tr>(.*?)</tr>", found._repr_html_())
    assert len(rows) - rows.index(next(row for row in rows if row.startswith("<th>"))) == 1 + len(found.epochs)
    last = found.epochs[-1]
    assert re.findall("<td>(.*?)</td>", rows[-1])[:4] == ["2", str(last.kept), f"{last.real:.1%}", str(last.returned)]
    with open_manifest(tmp_path / "manifest.parquet") as manifest:
        cells = Tags(manifest._repr_html_()).cells
        assert cells[cells.index("kept") + 1] == kept_of(manifest.kept, 40)
        assert "streams" not in repr(manifest)


@pytest.mark.parametrize(
    ("value", "text"), [(12345, "12,345"), (0.123456, "0.1235"), (True, "True"), ("<b>", "&lt;b&gt;"), (None, "")]
)
def test_values(value: object, text: str) -> None:
    assert html_table("t", {}, ["c"], [[value]]).endswith(f"<tr><td>{text}</td></tr></table></div>")


def test_nothing_of_nothing() -> None:
    assert kept_of(0, 0) == "0 of 0"
    assert html_table("<t>", {"a": None}) == "<div><b>&lt;t&gt;</b><table></table></div>"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    text = "a\x1b[31mred\x07\x9b é\u3042\n\tb"
    assert printable(text) == "a\\x1b[31mred\\x07\\x9b é\u3042\n\tb"

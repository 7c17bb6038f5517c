"""Manifests: what mattered, sample by sample, as a Parquet file that any tool reads, and that is checked when read.

Version 1. The file's metadata, each entry behind ``ted_stream.manifest.``, is text: ``format_version``;
``fingerprint`` of the dataset; ``streams`` (JSON: of each stream, in the run's order, the name that it has in the rows,
and the one that it would have if the content of shards were unknown); ``run``, ``method``, ``settings``; ``selection``
(JSON), ``epoch`` and ``skip_list`` (the digest) of the one that decides; ``epochs`` that had begun; ``scored_after``;
``samples`` of the dataset, ``kept`` of them, ``rows``; and ``digest``, a sha256 of all of these and of all rows. What
there is none of is empty. The columns are those of `SCHEMA`, with text as it is.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ted_stream.export.origins import CHUNK, Origins
from ted_stream.export.rows import PLAIN, SCHEMA, RowsDigest, rows_of
from ted_stream.export.selected import Progress, Selected
from ted_stream.export.selection import Selection
from ted_stream.files import reading
from ted_stream.showing import html_table, kept_of
from ted_stream.skip_list.kinds import MANIFEST, kind_of

__all__ = ["Manifest", "ManifestError", "open_manifest", "write_rows"]

_VERSION = "1"
_PREFIX = "ted_stream.manifest."
_AGAIN = "export or copy it again"


class ManifestError(ValueError):
    """A manifest that cannot be trusted; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An open manifest: what it says of itself, and its rows.

    Attributes:
        fingerprint: of the dataset.
        streams: of each of its streams, in the run's order, the name in the rows, and the one without content (see
            :attr:`~ted_stream.skip_list.DatasetLayout.shape_keys`).
        run: its name.
        method: name of the pruning method.
        settings: the method's repr.
        selection: which samples are kept.
        epoch: whose skip-list decided; ``None`` where several, or scores, did.
        skip_list: digest of that list, or ``None``.
        epochs: how many had begun.
        scored_after: the epoch after which the scores were; ``None`` where there are none.
        samples: of the dataset.
        kept: samples that are kept.
        rows: in the file: the kept ones, or all samples.
        digest: of all of these and the rows.
    """

    fingerprint: str
    streams: tuple[tuple[str, str], ...] = field(repr=False)
    run: str
    method: str
    settings: str
    selection: Selection
    epoch: int | None
    skip_list: str | None
    epochs: int
    scored_after: int | None
    samples: int
    kept: int
    rows: int
    digest: str
    _file: pq.ParquetFile = field(repr=False)
    _metadata: dict[str, str] = field(repr=False)

    def _repr_html_(self) -> str:
        facts = {"run": self.run, "method": self.settings, "selection": str(self.selection), "epoch": self.epoch}
        facts |= {"kept": kept_of(self.kept, self.samples), "rows": self.rows, "scores after epoch": self.scored_after}
        return html_table("Manifest", facts)

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of `PLAIN`, or some columns of them, tens of thousands at once.

        Raises:
            ManifestError: if a page is damaged.
        """
        try:
            yield from self._file.iter_batches(CHUNK, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"the rows cannot be read: {error}; the file is damaged: {_AGAIN}") from error

    def check(self) -> None:
        """Read all rows, and compare them with the digest.

        Raises:
            ManifestError: if they are others.
        """
        found = RowsDigest()
        for batch in self.batches():
            found.update(batch)
        digest = found.hexdigest(self._metadata)
        if digest != self.digest:
            raise ManifestError(f"digest is {digest}, the file says {self.digest}; the file was changed: {_AGAIN}")


@contextmanager
def open_manifest(path: str | os.PathLike[str]) -> Iterator[Manifest]:
    """A manifest, open for as long as the block takes; its rows are not read yet.

    Args:
        path: local or a URI.

    Raises:
        FileNotFoundError: if there is no such file.
        ManifestError: if it is no manifest, of another version, or damaged.
    """
    with reading(path) as source:
        try:
            try:
                file = pq.ParquetFile(source, page_checksum_verification=True)
            except (pa.ArrowException, OSError) as error:
                raise ManifestError(f"this is no whole Parquet file ({error}); {_AGAIN}") from error
            yield _manifest_of(file)
        except ManifestError as error:
            raise ManifestError(f"manifest {os.fspath(path)!r}: {error}") from error


def _manifest_of(file: pq.ParquetFile) -> Manifest:
    raw = file.metadata.metadata or {}
    if kind_of(raw) != MANIFEST:
        raise ManifestError(
            f"this is {kind_of(raw) or 'another Parquet file'}, no manifest of kept samples; check the path"
        )
    prefix = _PREFIX.encode()
    ours = {k.removeprefix(prefix).decode(): v.decode() for k, v in raw.items() if k.startswith(prefix)}
    if ours.get("format_version") != _VERSION:
        raise ManifestError(
            f"format version {ours.get('format_version')} found, {_VERSION} supported; use the ted-stream release that "
            "wrote the file"
        )
    if not file.schema_arrow.equals(PLAIN):
        raise ManifestError(f"columns are {file.schema_arrow.names} or of other types than {PLAIN.names}; {_AGAIN}")
    digest = ours.pop("digest")
    values: dict[str, Any] = {name: text for name, text in ours.items() if name != "format_version"}
    try:
        values["streams"] = tuple((key, shape) for key, shape in json.loads(values["streams"]))
        values["selection"] = Selection.from_json(values["selection"])
        for name in ("epochs", "samples", "kept", "rows"):
            values[name] = int(values[name])
        for name in ("epoch", "scored_after"):
            values[name] = int(values[name]) if values[name] else None
        values["skip_list"] = values["skip_list"] or None
        found = Manifest(**values, digest=digest, _file=file, _metadata=ours)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"the metadata is damaged ({error!r}); {_AGAIN}") from error
    if file.metadata.num_rows != found.rows:
        raise ManifestError(f"{file.metadata.num_rows} rows found, the file says {found.rows}; {_AGAIN}")
    return found


def write_rows(
    file: BinaryIO,
    selected: Selected,
    origins: Origins,
    *,
    all_samples: bool = False,
    progress: Progress = lambda *_: None,
) -> None:
    """Write a manifest, a row group for tens of thousands of samples.

    Args:
        file: what it is written to.
        selected: the samples that are kept.
        origins: of the same dataset.
        all_samples: list those that are not kept, too.
        progress: of the stage ``rows``.
    """
    digest = RowsDigest()
    # Without Arrow's own schema, beside which pyarrow's readers would not show what is added at the end.
    options = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}
    with pq.ParquetWriter(file, SCHEMA, **options) as writer:
        for batch in rows_of(selected, origins, all_samples=all_samples, progress=progress):
            digest.update(batch)
            writer.write_batch(batch)
        metadata = {
            "format_version": _VERSION,
            "fingerprint": selected.layout.fingerprint,
            "streams": json.dumps([*zip(selected.layout.stream_keys, selected.layout.shape_keys, strict=True)]),
            "run": selected.run,
            "method": selected.method,
            "settings": selected.settings,
            "selection": selected.selection.to_json(),
            "epoch": _text(selected.epoch),
            "skip_list": _text(selected.skip_list_digest),
            "epochs": str(selected.epochs),
            "scored_after": _text(selected.scored_after),
            "samples": str(selected.num_samples),
            "kept": str(selected.num_kept),
            "rows": str(digest.rows),
        }
        metadata["digest"] = digest.hexdigest(metadata)
        writer.add_key_value_metadata({_PREFIX + name: text for name, text in metadata.items()})


def _text(value: object) -> str:
    return "" if value is None else str(value)

"""The file of a sweep's results: a row per run, written anew as each ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from ted_stream.files import write_bytes

from .run import Outcome

__all__ = ["RESULTS_FILE", "read_outcomes", "write_outcomes"]

RESULTS_FILE = "results.parquet"
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[float]: pa.list_(pa.float64())}


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write all rows, whole or not at all."""
    hints = get_type_hints(Outcome)
    schema = pa.schema([(option.name, _TYPES[hints[option.name]]) for option in fields(Outcome)])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=schema), sink)
    write_bytes(str(path), sink.getvalue().to_pybytes())


def read_outcomes(path: Path) -> list[Outcome]:
    """All rows; none where there is no file.

    Raises:
        ValueError: if the file is of another version.
    """
    if not path.exists():
        return []
    try:
        return [Outcome(**row) for row in pq.read_table(path).to_pylist()]
    except TypeError as error:
        raise ValueError(f"{path} has other columns than this version's ({error}); name another --out.") from error

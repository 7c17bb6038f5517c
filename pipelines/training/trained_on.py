"""The dataset that a run of a recipe was trained on, by what lies in its folder."""

from __future__ import annotations

from ted_stream.export.run_files import read_run
from ted_stream.export.stream_index import layout_of_index, read_index, stream_folder
from ted_stream.skip_list import DatasetLayout

from .run_config import read_config

__all__ = ["trained_on"]


def trained_on(run: str) -> str | None:
    """The folder of the shards that a run's config names; ``None`` where it has no config, or they are others now.

    Args:
        run: its folder, a local path or a URI.

    Raises:
        PermissionError: an object store refuses to tell.
    """
    try:
        folder = stream_folder(read_config(run).get("data") or "")
        found = DatasetLayout(streams=(layout_of_index(read_index(folder)),))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    return folder if found.fingerprint == read_run(run).get("dataset") else None

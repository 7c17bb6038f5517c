"""What a Parquet file of ours is, told by its metadata: a wrong one is named for what it is."""

from collections.abc import Mapping

__all__ = ["MANIFEST", "RUNNING_SCORES", "SCORES", "SKIP_LIST", "kind_of"]

SKIP_LIST = "a skip-list"
MANIFEST = "a manifest of kept samples"
SCORES = "a file of scores (ted-stream score)"
RUNNING_SCORES = "the running scores of a run"
_KINDS = {
    b"ted_stream.keep_ratio": SKIP_LIST,
    b"ted_stream.manifest.digest": MANIFEST,
    b"ted_stream.skip_list_digest": "a manifest of kept samples of an earlier version",
    b"ted_stream.origins.fingerprint": "the origins of a dataset's samples",
    b"ted_stream.scores.digest": SCORES,
    b"ted_stream.running_scores.epoch": RUNNING_SCORES,
}


def kind_of(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """What the file is; ``None`` where it is not known."""
    return next((kind for entry, kind in _KINDS.items() if entry in (metadata or {})), None)

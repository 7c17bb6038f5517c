"""What a pruning run found, for other tools."""

from ted_stream.export.manifest import write_manifest
from ted_stream.export.runs import Exported, export_manifest
from ted_stream.export.scores import Scores, ScoresError, read_scores, write_scores

__all__ = [
    "Exported",
    "Scores",
    "ScoresError",
    "export_manifest",
    "read_scores",
    "write_manifest",
    "write_scores",
]

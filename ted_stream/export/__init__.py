"""What a pruning run found, for people and other tools."""

from ted_stream.export.comparing import comparison_of
from ted_stream.export.inspecting import summary_of
from ted_stream.export.manifest import write_manifest
from ted_stream.export.runs import Exported, export_manifest
from ted_stream.export.scores import Scores, ScoresError, read_scores, write_scores

__all__ = [
    "Exported",
    "Scores",
    "ScoresError",
    "comparison_of",
    "export_manifest",
    "read_scores",
    "summary_of",
    "write_manifest",
    "write_scores",
]

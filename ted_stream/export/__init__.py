"""What a pruning run found, for other tools."""

from ted_stream.export.manifest import write_manifest
from ted_stream.export.runs import Exported, export_manifest
from ted_stream.export.scores import Scores, ScoresError, read_scores, write_scores
from ted_stream.export.selected import Selected, select
from ted_stream.export.selection import Selection

__all__ = [
    "Exported",
    "Scores",
    "ScoresError",
    "Selected",
    "Selection",
    "export_manifest",
    "read_scores",
    "select",
    "write_manifest",
    "write_scores",
]

"""What a pruning run found, for other tools."""

from ted_stream.export.formats import FORMATS
from ted_stream.export.manifest import Manifest, ManifestError, open_manifest
from ted_stream.export.origins import Origins, find_origins, write_origins
from ted_stream.export.rows import rows_of
from ted_stream.export.runs import Exported, export_run
from ted_stream.export.scores import Scores, ScoresError, read_scores, write_scores
from ted_stream.export.selected import Selected, select
from ted_stream.export.selection import Selection
from ted_stream.export.verification import Check, verify

__all__ = [
    "FORMATS",
    "Check",
    "Exported",
    "Manifest",
    "ManifestError",
    "Origins",
    "Scores",
    "ScoresError",
    "Selected",
    "Selection",
    "export_run",
    "find_origins",
    "open_manifest",
    "read_scores",
    "rows_of",
    "select",
    "verify",
    "write_origins",
    "write_scores",
]

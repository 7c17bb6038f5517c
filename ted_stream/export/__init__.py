"""What a pruning run found, for people and other tools."""

from ted_stream.export.comparing import comparison_of
from ted_stream.export.findings import RunFindings, read_findings
from ted_stream.export.formats import FORMATS
from ted_stream.export.inspecting import summary_of
from ted_stream.export.manifest import Manifest, ManifestError, open_manifest
from ted_stream.export.materialising import COPIES, Materialised, materialise
from ted_stream.export.origins import Origins, find_origins, write_origins
from ted_stream.export.rows import rows_of
from ted_stream.export.runs import Exported, export_run
from ted_stream.export.scores import Scores, ScoresError, read_scores, write_scores
from ted_stream.export.selected import Selected, select
from ted_stream.export.selection import Selection
from ted_stream.export.shard_copying import Copied, ShardCopy, copy_shard
from ted_stream.export.verification import Check, verify

__all__ = [
    "COPIES",
    "FORMATS",
    "Check",
    "Copied",
    "Exported",
    "Manifest",
    "ManifestError",
    "Materialised",
    "Origins",
    "RunFindings",
    "Scores",
    "ScoresError",
    "Selected",
    "Selection",
    "ShardCopy",
    "comparison_of",
    "copy_shard",
    "export_run",
    "find_origins",
    "materialise",
    "open_manifest",
    "read_findings",
    "read_scores",
    "rows_of",
    "select",
    "summary_of",
    "verify",
    "write_origins",
    "write_scores",
]

"""What a pruning run found, for other tools."""

from ted_stream.export.manifest import write_manifest

__all__ = ["write_manifest"]

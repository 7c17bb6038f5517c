"""Streaming's compressions of whole files."""

from streaming.base.compression import compress, decompress

__all__ = ["compress", "decompress"]

"""What streaming does to whole files: its compressions, and its hashes, of which hashlib has not all."""

from streaming.base.compression import compress, decompress
from streaming.base.hashing import get_hash

__all__ = ["compress", "decompress", "get_hash"]

"""Write a file whole or not at all."""

import os
import secrets
from pathlib import Path


def write_bytes_whole(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` under a temporary name in the same folder, flush it to disk, then rename it.

    Missing folders are made. On failure ``path`` is as it was and the temporary file is gone.

    Raises:
        OSError: The folder or file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

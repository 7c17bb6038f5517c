"""What is refused in a tar that somebody else made."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

__all__ = ["check_is_file", "safe_path"]


def safe_path(member: tarfile.TarInfo, source: str | Path) -> PurePosixPath:
    """The path of a member of the tar ``source``.

    Raises:
        ValueError: it is absolute or climbs with ``..``.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise ValueError(
            f"{source} holds the unsafe member name {member.name!r} (absolute or climbing); "
            "nothing was written. Make the tar again with relative names."
        )
    return path


def check_is_file(member: tarfile.TarInfo, source: str | Path) -> None:
    """Refuse a member whose bytes are not simply its content.

    Raises:
        ValueError: it is a link, a device, a folder or a sparse file.
    """
    if not member.isreg() or member.issparse():
        raise ValueError(f"{source} holds {member.name!r} as a link, device or sparse file, not as a plain file.")

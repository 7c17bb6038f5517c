"""What webdataset makes of a tar: which members are samples, and what is in them."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from ted_stream.extras import optional_imports

with optional_imports():
    from webdataset.autodecode import Decoder, ImageHandler
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

__all__ = ["META", "Handler", "decoder", "members", "sample_member", "samples_in"]

Handler = str | Callable[[str, bytes], Any]
"""What WebDataset.decode takes: the name of an image format ("pil", "rgb8", "torchrgb", …), or a function."""

META = re.compile(r"__[^/]*__($|/)")  # names that webdataset skips


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar in their order, without tarfile's memory of all of them."""
    while (member := tar.next()) is not None:
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
        yield member


def sample_member(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """(key, extension) of a tar member by webdataset's rules, ``None`` if it is no part of a sample."""
    if not member.isreg() or META.match(member.name):
        return None
    key, extension = base_plus_ext(member.name)
    return None if key is None or extension is None else (key, extension.lower())


def samples_in(data: bytes, url: str) -> list[dict[str, Any]]:
    """The samples in a part of a tar, not decoded.

    Args:
        data: whole members, headers included.
        url: the ``__url__`` of the samples.

    Raises:
        tarfile.TarError: if it is no part of a tar.
        ValueError: if webdataset makes no samples of it.
    """
    files = tar_file_iterator(io.BytesIO(data))  # pyright: ignore[reportArgumentType]
    return list(group_by_keys({**file, "__url__": url} for file in files))


@lru_cache(maxsize=8)
def decoder(handlers: tuple[Handler, ...]) -> Decoder:
    """Webdataset's decoder, made in the process that decodes and shared by its readers.

    Raises:
        ValueError: if a name is no image format of webdataset.
    """
    return Decoder([ImageHandler(handler) if isinstance(handler, str) else handler for handler in handlers])

"""WebDataset tars as shards of a streaming dataset: every sample can be read alone, by its byte range."""

import os
import struct
import tarfile
import zlib
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from streaming.base import format as streaming_format
from streaming.base.format.base.reader import FileInfo, Reader
from typing_extensions import Self

if TYPE_CHECKING:
    from ted_stream.reading.tar_members import Handler

__all__ = ["TarReader", "offsets_file", "parse_offsets", "set_decoders"]

UNSAFE = frozenset({"pickle", "pkl", "pth", "pyd"})
"""Extensions that webdataset unpickles; its npy and npz refuse pickled objects."""

MAGIC = b"tedtar"
VERSION = 1
HEADER = struct.Struct("<6sHQI")  # magic, version, samples, crc32 of the offsets
MEND = "Delete it where it is a cached copy; else restore it, or run `ted-stream index` again."


def offsets_file(offsets: NDArray[np.uint64]) -> bytes:
    """The file beside a tar that tells where its samples are.

    Args:
        offsets: (samples + 1,) uint64, ascending; see :func:`parse_offsets`.

    Returns:
        Little-endian: b"tedtar", version (uint16), samples (uint64), crc32 of what follows (uint32), the offsets.
    """
    table = offsets.astype("<u8").tobytes()
    return HEADER.pack(MAGIC, VERSION, len(offsets) - 1, zlib.crc32(table)) + table


def parse_offsets(meta: bytes, *, samples: int, tar: FileInfo, file: FileInfo) -> NDArray[np.int64]:
    """Where the samples of a tar are.

    Args:
        meta: the whole file of offsets.
        samples: of the tar, as the index says.
        tar: as the index has it.
        file: of the offsets, as the index has it.

    Returns:
        (samples + 1,) int64, ascending: everything of sample i, its tar headers included, is in the bytes
        [offsets[i], offsets[i + 1]) of the tar, and no part of another sample.

    Raises:
        ValueError: if the file is damaged, or does not belong to this shard.
    """
    table = meta[HEADER.size :]
    magic, version, found, crc = HEADER.unpack(meta[: HEADER.size].ljust(HEADER.size, b"\0"))
    offsets = np.frombuffer(table[: len(table) // 8 * 8], "<u8")
    if magic != MAGIC or version != VERSION:
        fault = f"it begins with {magic!r}, version {version}, not {MAGIC!r}, version {VERSION}"
    elif found != samples or len(table) != 8 * (found + 1):
        fault = f"it has {len(table)} bytes of offsets for {found} samples, the index has {samples} samples"
    elif zlib.crc32(table) != crc:
        fault = "its checksum is wrong"
    elif (offsets[1:] <= offsets[:-1]).any():
        fault = "its offsets do not ascend"
    elif offsets[-1] > tar.bytes:
        fault = f"it ends at byte {offsets[-1]}, after the {tar.bytes} bytes of {tar.basename}"
    else:
        return offsets.astype(np.int64)
    raise ValueError(f"{file.basename} cannot be used: {fault}. {MEND}")


def set_decoders(shards: Iterable[Reader], decoders: Iterable["Handler"]) -> None:
    """Choose how tars are decoded, as the arguments of WebDataset.decode do; shards of other formats are left alone.

    Raises:
        ValueError: if a name is no image format of webdataset.
    """
    decoders = tuple(decoders)
    if decoders != TarReader.decoders:  # datasets of other formats have the default, and perhaps no webdataset
        from ted_stream.reading.tar_members import decoder

        decoder(decoders)
    for shard in shards:
        if isinstance(shard, TarReader):
            shard.decoders = decoders


class TarReader(Reader):
    """The samples of one tar and the file of offsets beside it, both made known by ``ted-stream index``.

    A sample is what webdataset makes of its members: ``__key__``, and a decoded value per extension. webdataset's
    ``__url__`` is left out: the reader knows where its copy of the shard lies, not where it came from.

    Args:
        dirname: local folder of the dataset.
        split: subfolder, if any.
        raw_data: the tar.
        raw_meta: its offsets.
        samples: number of samples.
        extensions: extensions that every sample has.
    """

    decoders: "tuple[Handler, ...]" = ("pil",)
    """What decodes beside webdataset's basic decoders (txt, cls, json, npy, …); see :func:`set_decoders`."""

    def __init__(
        self,
        dirname: str,
        split: str | None,
        *,
        raw_data: FileInfo,
        raw_meta: FileInfo,
        samples: int,
        extensions: Iterable[str],
    ) -> None:
        super().__init__(dirname, split, compression=None, hashes=[], samples=samples, size_limit=None)
        self.raw_data = raw_data
        self.raw_meta = raw_meta
        self.extensions = frozenset(extensions)
        # The tar comes first: a shard is known by the name of its first file.
        self.file_pairs = [(raw_data, None), (raw_meta, None)]

    @classmethod
    def from_json(cls, dirname: str, split: str | None, obj: dict[str, Any]) -> Self:
        """Make the reader of a shard of an index.

        Raises:
            ValueError: if the shard is of another format or version.
            MissingExtraError: without webdataset.
        """
        import_module("ted_stream.reading.tar_members")  # now, rather than in every worker, and at its first sample
        if (obj["format"], obj["version"]) != ("tar", 2):
            raise ValueError(
                f"A shard has format {obj['format']!r}, version {obj['version']}, not 'tar', version 2; make the index "
                "with this version's `ted-stream index`."
            )
        return cls(
            dirname,
            split,
            raw_data=FileInfo(**obj["raw_data"]),
            raw_meta=FileInfo(**obj["raw_meta"]),
            samples=obj["samples"],
            extensions=obj["extensions"],
        )

    def validate(self, allow_unsafe_types: bool) -> None:
        """Refuse members whose decoding could run code.

        Raises:
            ValueError: if there are such members and ``allow_unsafe_types`` is not set.
        """
        # webdataset unpacks .gz first, and goes by what is then behind the last dot.
        unsafe = sorted(e for e in self.extensions if e.removesuffix(".gz").rpartition(".")[2] in UNSAFE)
        if unsafe and not allow_unsafe_types:
            raise ValueError(
                f"The samples of {self.raw_data.basename} have {', '.join('.' + e for e in unsafe)} members, which are "
                "unpickled, and that can run any code. If you trust whoever wrote them, pass allow_unsafe_types=True."
            )

    def set_up_local(self, listing: set[str], safe_keep_zip: bool) -> int:
        """Bytes in the local folder, 0 if a file of the shard is missing.

        Streaming deletes what is there of an incomplete shard; here that may be the only copy: somebody's tar, or
        offsets that an index of a read-only bucket keeps apart from it.
        """
        files = (os.path.join(self.dirname, self.split, file.basename) for file, _ in self.file_pairs)
        return self.get_raw_size() if all(file in listing for file in files) else 0

    def _evict_raw(self) -> int:
        """Remove the tar and say how many bytes went; the offsets stay, as the index does."""
        try:
            os.remove(self._path(self.raw_data))
        except FileNotFoundError:
            return 0
        return self.raw_data.bytes

    def get_sample_data(self, idx: int) -> bytes:
        """The bytes of a sample, tar headers included, from the local files.

        Raises:
            ValueError: if the tar or its offsets are damaged.
        """
        with open(self._path(self.raw_meta), "rb", 0) as file:
            file.seek(HEADER.size + 8 * idx)
            pair = file.read(16)
        begin, end = struct.unpack("<QQ", pair) if len(pair) == 16 else (0, 0)
        if not begin < end <= self.raw_data.bytes:
            raise ValueError(
                f"{self.raw_meta.basename} is damaged: it has sample {idx} at [{begin}, {end}) of "
                f"{self.raw_data.bytes} bytes. {MEND}"
            )
        with open(self._path(self.raw_data), "rb", 0) as file:
            file.seek(begin)
            data = file.read(end - begin)
        if len(data) < end - begin:
            raise ValueError(
                f"{self.raw_data.basename} ends within sample {idx}, at [{begin}, {end}) of {self.raw_data.bytes} "
                f"bytes: it is truncated. {MEND}"
            )
        return data

    def get_item(self, idx: int) -> dict[str, Any]:
        """The sample at a position.

        Raises:
            ValueError: if it is damaged; the error names shard and position.
        """
        data = self.get_sample_data(idx)
        try:
            return self.decode_sample(data)
        except ValueError as error:
            raise ValueError(f"Sample {idx} of {error}") from error

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """The sample in the bytes between two offsets.

        Raises:
            ValueError: if they are not a sample of this shard, or a member cannot be decoded.
        """
        from webdataset.autodecode import DecodingError

        from ted_stream.reading.tar_members import META, decoder, samples_in

        name = self.raw_data.basename
        try:
            samples = samples_in(data, name)
        except (tarfile.TarError, ValueError) as error:
            raise ValueError(f"{name} is damaged: {error}") from error
        found = [samples[0].keys() - {"__key__", "__url__"}] if len(samples) == 1 else []
        if found != [self.extensions]:
            raise ValueError(
                f"{name} is not what was indexed: {len(samples)} samples where one should be, with the extensions "
                f"{sorted({e for sample in samples for e in sample if not META.match(e)})}, expected "
                f"{sorted(self.extensions)}. {MEND}"
            )
        del samples[0]["__url__"]
        try:
            return decoder(self.decoders)(samples[0])
        except DecodingError as error:
            cause = error.__cause__
            raise ValueError(
                f"{name}, key {error.key!r}: cannot decode .{error.k}: {type(cause).__name__}: {cause}"
            ) from error

    def _path(self, file: FileInfo) -> str:
        return os.path.join(self.dirname, self.split, file.basename)


# Streaming looks readers up here by the format that an index names; it has no public way to add one.
streaming_format._readers["tar"] = TarReader

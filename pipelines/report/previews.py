"""Samples as people look at them: small pictures and short texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from streaming.base.format import reader_from_json
from streaming.base.format.base.reader import Reader

from ted_stream.export.dataset_files import DatasetFolder
from ted_stream.files import join
from ted_stream.reading.heads import head_of
from ted_stream.reading.sources import LocalSource, read_patiently, source_of
from ted_stream.showing import printable

__all__ = ["Preview", "SampleReader", "preview_of"]

_SIDE = 96  # pixels of a picture at most
_EXACT = 32  # up to which side no pixel is lost
_MOST_LETTERS = 600
_TIMEOUT, _ATTEMPTS = 20.0, 2  # seconds, and how often: a report is worth less patience than a run
_TOKENS = "input_ids"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One sample.

    Attributes:
        image: a data URI; ``None`` where it is no picture.
        is_small: whether the picture has so few pixels that they are to be seen.
        text: its other columns; empty where there are none.
    """

    image: str | None = None
    is_small: bool = False
    text: str = ""


class SampleReader:
    """Reads single samples of a dataset by their byte ranges: local ones, and those of S3-compatible stores.

    Args:
        data: where they are.
    """

    def __init__(self, data: DatasetFolder) -> None:
        self._data = data
        self._source = source_of(data.path, timeout=_TIMEOUT)
        self._readers: dict[int, Reader] = {}
        self._offsets: dict[int, NDArray[np.int64]] = {}

    def preview(self, sample_id: int) -> Preview:
        """Of the sample of an id.

        Raises:
            ValueError: it cannot be read or decoded; saying why.
        """
        return self._shown(sample_id, preview_of)

    def text(self, sample_id: int) -> str:
        """All that can be told of the sample of an id in words; errors as of :meth:`preview`."""
        return self._shown(sample_id, _told)

    def _shown(self, sample_id: int, show: Callable[[Mapping[str, Any], Any], _T]) -> _T:
        offsets = self._data.layout.shard_offsets
        shard = int(np.searchsorted(offsets, sample_id, side="right")) - 1
        try:
            return show(self._read(shard, sample_id - int(offsets[shard])), self._decode)
        except Exception as error:  # whatever a store, a decoder or a damaged file raises
            raise ValueError(f"sample {sample_id} of {self._data.path} cannot be shown: {error}") from error

    def _read(self, shard: int, position: int) -> Mapping[str, Any]:
        if shard not in self._readers:
            # streaming takes what an index says out of the dictionary that it is given
            self._readers[shard] = reader_from_json(self._data.path, None, dict(self._data.shards[shard]))
        reader = self._readers[shard]
        head = head_of(reader)
        if head is None or self._source is None:
            raise ValueError("single samples cannot be read from its store, or from shards of its format")
        if shard not in self._offsets:
            self._offsets[shard] = head.parse(self._bytes(head.file.basename, 0, head.size, head.file.bytes))
        begin, end = self._offsets[shard][position : position + 2].tolist()
        return reader.decode_sample(self._bytes(head.data.basename, begin, end, head.data.bytes))

    def _bytes(self, name: str, begin: int, end: int, size: int) -> bytes:
        source, path = self._source or LocalSource(), join(self._data.path, name)
        return read_patiently(source, path, begin, end, size=size, attempts=_ATTEMPTS)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        root = self._data.path.rstrip("/").rpartition("/")[0]
        return Tokenizer.from_file(join(join(root or ".", "tokenizer"), "tokenizer.json"))

    def _decode(self, tokens: Any) -> str:
        return self._tokenizer.decode([int(token) for token in tokens])


def preview_of(sample: Mapping[str, Any], decode_tokens: Any = None) -> Preview:
    """A picture of the first column that is one, else the text of all that can be told in words.

    Args:
        sample: decoded values by column.
        decode_tokens: makes text of token ids; what it raises leaves them as numbers.
    """
    for value in sample.values():
        image = _image_of(value)
        if image is not None:
            return Preview(image=_data_uri(image), is_small=max(image.size) <= _EXACT)
    return Preview(text=_short(_told(sample, decode_tokens)))


def _told(sample: Mapping[str, Any], decode_tokens: Any) -> str:
    if _TOKENS in sample and decode_tokens is not None:
        try:
            return decode_tokens(sample[_TOKENS])
        except Exception:  # the tokenizers' own error has no other base
            return f"tokens {' '.join(map(str, sample[_TOKENS]))}"
    told = [f"{name}: {value}" for name, value in sample.items() if isinstance(value, (str, int, float, dict, list))]
    return "\n".join(told)


def _image_of(value: Any) -> Image.Image | None:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        try:
            return Image.open(io.BytesIO(value))
        except OSError:
            return None
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (2, 3):
        return None
    if value.ndim == 3 and value.shape[2] not in (1, 3, 4):
        return None
    grey = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
    # What has few grey levels, as the 17 of digits, would be black.
    most = int(grey.max(initial=0))
    return Image.fromarray((grey.astype(np.float64) * (255 / most)).astype(np.uint8) if 0 < most < 64 else grey)


def _data_uri(image: Image.Image) -> str:
    image.draft("RGB", (_SIDE, _SIDE))  # a JPEG is decoded at a smaller size
    exact = max(image.size) <= _EXACT
    image = image.convert("RGBA" if exact and "A" in image.getbands() else "RGB")
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG") if exact else image.save(file, "JPEG", quality=78, optimize=True)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"

"""The skip-list: which samples of a dataset are pruned in which epoch, and the file that says so."""

from ted_stream.skip_list.errors import SkipListError
from ted_stream.skip_list.layout import DatasetLayout, ShardLayout, StreamLayout
from ted_stream.skip_list.parquet import from_bytes, read_skip_list, to_bytes, unweighted, write_skip_list
from ted_stream.skip_list.skip_list import SkipList
from ted_stream.skip_list.version import FORMAT_VERSION

__all__ = [
    "FORMAT_VERSION",
    "DatasetLayout",
    "ShardLayout",
    "SkipList",
    "SkipListError",
    "StreamLayout",
    "from_bytes",
    "read_skip_list",
    "to_bytes",
    "unweighted",
    "write_skip_list",
]

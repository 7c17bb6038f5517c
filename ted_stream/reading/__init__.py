"""Reading only what is kept: datasets and pipelines that drop pruned samples before their bytes are read."""

from ted_stream.pruning.sample_ids import SAMPLE_ID, attach_sample_id
from ted_stream.reading.dataset import Prunable
from ted_stream.reading.drop_pruned import drop_pruned
from ted_stream.reading.pruned_streaming_dataset import PrunedStreamingDataset

__all__ = ["SAMPLE_ID", "Prunable", "PrunedStreamingDataset", "attach_sample_id", "drop_pruned"]

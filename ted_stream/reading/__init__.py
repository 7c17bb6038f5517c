"""Reading only what is kept: datasets and pipelines that drop pruned samples before their bytes are read."""

from ted_stream.reading.dataset import SAMPLE_ID, Prunable, PrunedStreamingDataset, attach_sample_id
from ted_stream.reading.drop_pruned import drop_pruned
from ted_stream.reading.sampler import PrunedSampler

__all__ = ["SAMPLE_ID", "Prunable", "PrunedSampler", "PrunedStreamingDataset", "attach_sample_id", "drop_pruned"]

"""Reading only what is kept: streaming datasets that drop pruned samples before their bytes are read."""

from ted_stream.reading.dataset import SAMPLE_ID, Prunable, PrunedStreamingDataset, attach_sample_id

__all__ = ["SAMPLE_ID", "Prunable", "PrunedStreamingDataset", "attach_sample_id"]

from streaming import StreamingDataset

class StreamingFinetuningDataset(StreamingDataset): ...

class DatasetConstructor:
    @property
    def streaming_dataset_class(self) -> type[StreamingFinetuningDataset]: ...

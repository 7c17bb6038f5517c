from typing import Any

from composer.core import DataSpec
from streaming import StreamingDataset

class StreamingTextDataset(StreamingDataset):
    def _read_binary_tokenized_sample(self, sample: dict[str, Any]) -> Any: ...

def build_text_dataloader(*, dataset: dict[str, Any], **arguments: Any) -> DataSpec: ...

from typing import Any

from composer.core import DataSpec

def build_finetuning_dataloader(*, dataset: dict[str, Any], **arguments: Any) -> DataSpec: ...

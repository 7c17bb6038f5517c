from typing import Any

class TypedRegistry:
    def get(self, name: str) -> Any: ...
    def get_all(self) -> dict[str, Any]: ...

algorithms: TypedRegistry
config_transforms: TypedRegistry
dataloaders: TypedRegistry

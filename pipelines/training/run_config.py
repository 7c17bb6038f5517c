"""What the config in a run folder names, for those who look at the run; without the schema, which may have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ted_stream.files import is_remote, join, read_bytes

__all__ = ["CONFIG_FILE", "DATA_FILE", "read_config"]

CONFIG_FILE = "config.yaml"
DATA_FILE = "data.json"
"""Says by a digest on which data the run was begun."""
_NAMES = {
    "run_name": "run_name",
    "data": "data.path",
    "duration": "max_duration",
    "method": "pruning.method",
    "reference": "pruning.reference",
}


def read_config(folder: str) -> dict[str, Any]:
    """``run_name``, ``data`` (path of the dataset), ``duration``, ``method`` and ``reference`` of a run's config.

    Args:
        folder: of a run, local or a URI; of another thing there is nothing.

    Returns:
        Those that have a value; empty where there is no config.

    Raises:
        ValueError: the config is damaged.
    """
    if not is_remote(folder) and not Path(folder).is_dir():
        return {}
    path = join(folder, CONFIG_FILE)
    try:
        config = OmegaConf.create(read_bytes(path).decode())
        found = {name: OmegaConf.select(config, key, default=None) for name, key in _NAMES.items()}
    except FileNotFoundError:
        return {}
    except OSError:
        raise
    except Exception as error:  # YAML's own errors share no base with OmegaConf's
        raise ValueError(f"{path} is damaged ({error}); put back the file that the run wrote.") from error
    return {name: value for name, value in found.items() if value is not None}

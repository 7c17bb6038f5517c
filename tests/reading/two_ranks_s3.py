"""Reads a pruned epoch from S3, on any number of ranks: run by test_faults.py."""

import os
import sys
from pathlib import Path

import numpy as np
from test_faults import dataset_of, read_epoch


def main() -> None:
    folder, url = Path(sys.argv[1]), sys.argv[2]
    os.environ["S3_ENDPOINT_URL"] = url
    dataset, _ = dataset_of(folder)
    samples = read_epoch(dataset, workers=2)
    np.save(folder / f"rank{os.environ['RANK']}.npy", [sample["id"] for sample in samples])


if __name__ == "__main__":
    main()

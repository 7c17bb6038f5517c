"""Datasets, run folders and skip-lists on an S3 server, over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from small_run import BATCH_SIZE, TupleDataset, make_ted

NUM_SAMPLES = 101
BUCKET = "training"  # of the fixture


@pytest.mark.long
def test_a_run_whose_data_and_folder_are_on_s3(
    s3: Any, make_mds: Callable[..., str], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = make_mds(NUM_SAMPLES)
    for path in Path(folder).iterdir():
        s3.upload_file(str(path), BUCKET, f"data/{path.name}")

    def run(name: str, remote: str | None, run_folder: str, **arguments: Any) -> tuple[list[str], torch.Tensor]:
        local = folder if remote is None else str(tmp_path / name)
        dataset = TupleDataset(remote=remote, local=local, shuffle=True, batch_size=BATCH_SIZE)
        ted = make_ted(0.6, annealing=0, folder=run_folder)
        trainer = make_trainer("", [ted], dataset=dataset, max_duration="4ep", run_name="run", **arguments)
        trainer.fit()
        trainer.close()
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.state.model.parameters()])
        return [record.digest for record in ted.records], weights

    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "5ba"}
    digests, weights = run("a", None, str(tmp_path / "run"))
    s3_digests, s3_weights = run("b", f"s3://{BUCKET}/data", f"s3://{BUCKET}/run", **saving)
    assert s3_digests == digests
    assert torch.equal(s3_weights, weights)
    keys = {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix="run/")["Contents"]}
    lists = [f"run/skip_lists/ep{epoch:04d}.parquet" for epoch in range(4)]
    assert keys == {*lists, "run/run.json", "run/running_scores.parquet", "run/manifest.parquet"}
    # The run goes on from S3, and the subset is trained on later.
    checkpoint = str(tmp_path / "checkpoints" / "ep2-ba25-rank0.pt")
    resumed_digests, resumed_weights = run("c", f"s3://{BUCKET}/data", f"s3://{BUCKET}/run", load_path=checkpoint)
    assert resumed_digests == digests
    assert torch.equal(resumed_weights, weights)
    subset = TupleDataset(
        remote=f"s3://{BUCKET}/data", local=str(tmp_path / "d"), batch_size=1, skip_list=f"s3://{BUCKET}/{lists[3]}"
    )
    list(subset)
    assert subset.fixed_skip_list is not None
    assert subset.read == subset.fixed_skip_list.kept_ids().tolist()
    # A list that is gone is named.
    s3.delete_object(Bucket=BUCKET, Key=lists[2])
    with pytest.raises(OSError, match=rf"s3://{BUCKET}/{lists[2]} of this run cannot be read"):
        run("e", f"s3://{BUCKET}/data", f"s3://{BUCKET}/run", load_path=checkpoint)

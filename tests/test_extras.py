"""What is not installed is named, with the command that installs it, where it is first needed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path

import pytest

from ted_stream.extras import EXTRAS, MissingExtraError, optional_imports

DISTRIBUTIONS = {
    "PIL": "pillow",
    "composer": "mosaicml",
    "llmfoundry": "llm-foundry",
    "sklearn": "scikit-learn",
}  # others: as the module
# Streaming brings the rest of what extras name.
ABSENT = {"composer", "accelerate", "braceexpand", "omegaconf", "rich", "sklearn", "scipy", "typer", "webdataset"}


def run(code: str, *arguments: object, without: set[str] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, as where these modules are not installed."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({sorted(without)}))\n{code}"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def command(extra: str) -> str:
    return f'pip install "ted-stream[{extra}]"'


def test_the_table_is_that_of_the_package() -> None:
    found: dict[str, set[str]] = {}
    for requirement in requires("ted-stream") or ():
        extra = re.search(r"""extra == ['"](.*?)['"]""", requirement)
        if extra is not None and not requirement.startswith("ted-stream["):
            found.setdefault(extra[1], set()).add(re.split(r"[^\w.-]", requirement)[0])
    found["pipelines"].remove("transformers")  # in an extra of its own too
    found["foundry"].remove("setuptools")  # which llm-foundry needs, and nothing of ours
    assert found == {extra: {DISTRIBUTIONS.get(m, m) for m in modules} for extra, modules in EXTRAS.items()}


def test_other_errors_are_let_through() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), optional_imports():
        import_module("no_such_module")
    with pytest.raises(MissingExtraError, match=re.escape(command("composer"))) as raised, optional_imports():
        raise ModuleNotFoundError("No module named 'composer.core'", name="composer.core")
    assert raised.value.name == "composer"
    with pytest.raises(MissingExtraError, match=r"^once$"), optional_imports(), optional_imports():
        raise MissingExtraError("once")


READ = "from ted_stream import PrunedStreamingDataset; PrunedStreamingDataset(local={0!r}, batch_size=8{1})"
NEEDING = {
    "from ted_stream import DataPruning": "composer",
    "import ted_stream; ted_stream.DataPruning": "composer",
    "from ted_stream import PruningMixin": "transformers",
    "from ted_stream.trainers.composer.durations import num_epochs": "composer",
    "import ted_stream.testing.composer_contract": "composer",
    "import ted_stream.trainers.foundry.dataloaders": "foundry",
    "from ted_stream import drop_pruned; drop_pruned('list.parquet')": "webdataset",
    "import ted_stream.reading.tar_index": "webdataset",
    READ.format("tars", ""): "webdataset",  # before anything of them is read
    READ.format("mds", ", decoders=('rgb8',)"): "webdataset",
}
# In one process, since importing streaming takes seconds.
EXECUTE = """
import json
for code in json.loads(sys.argv[1]):
    try:
        exec(code)
    except ImportError as error:
        print(json.dumps([code, type(error).__name__, str(error)]))
"""


@pytest.mark.long
@pytest.mark.long
def test_a_missing_extra_is_named(
    make_mds: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mds").symlink_to(make_mds(8))
    shard = json.loads((tmp_path / "mds/index.json").read_text())["shards"][0]
    shard |= {"format": "tar", "raw_meta": {"basename": "x.offsets", "bytes": 9, "hashes": {}}, "extensions": ["txt"]}
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
    done = run(EXECUTE, json.dumps(list(NEEDING)))
    assert done.returncode == 0, done.stderr
    found = {code: (kind, message) for code, kind, message in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == NEEDING.keys()
    for code, (kind, message) in found.items():
        assert kind == "MissingExtraError", code
        assert command(NEEDING[code]) in message, code


@pytest.mark.parametrize("code", ["from ted_stream.cli import main; main()", "import ted_stream.cli.__main__"])
def test_the_command_says_in_one_line_what_to_install(code: str) -> None:
    done = run(code, "--help", without={"typer"})
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith(f"{command('cli')}\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_a_loop_over_streaming_data_needs_no_extra(make_mds: Callable[..., str], tmp_path: Path) -> None:
    code = (
        "import torch, ted_stream.testing\n"
        "from torch.utils.data import DataLoader\n"
        "from ted_stream import InfoBatch, PrunedStreamingDataset, Pruner\n"
        "assert 'DataPruning' in dir(ted_stream)\n"
        "loader = DataLoader(PrunedStreamingDataset(local=sys.argv[1], batch_size=8), batch_size=8)\n"
        "model = torch.nn.Linear(6, 3)\n"
        "with Pruner(InfoBatch(0.5), model, loader, epochs=3, folder=sys.argv[2]) as pruner:\n"
        "    for _ in pruner:\n"
        "        for batch in pruner.batches():\n"
        "            losses = torch.nn.functional.cross_entropy(model(batch['x']), batch['y'], reduction='none')\n"
        "            pruner.loss(losses).backward()\n"
        "print([record.kept for record in pruner.records])\n"
    )
    done = run(code, make_mds(64), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert min(json.loads(done.stdout)) < 64

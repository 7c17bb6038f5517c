"""What a kill takes of Composer's checkpoints: the link to the newest one."""

import re
from pathlib import Path
from warnings import warn
from zipfile import is_zipfile

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import dist, format_name_with_dist

__all__ = ["link_newest", "link_newest_of"]


def link_newest_of(state: State) -> None:
    """:func:`link_newest` for the local checkpoints of a trainer that has not looked for one yet; on rank 0."""
    if dist.get_global_rank():
        return
    for saver in state.callbacks:
        if isinstance(saver, CheckpointSaver) and saver.latest_filename is not None and saver.remote_uploader is None:
            folder = format_name_with_dist(saver.folder, state.run_name)
            latest = format_name_with_dist(saver.latest_filename.filename, state.run_name)
            link_newest(Path(folder, latest), format_name_with_dist(saver.filename.filename, state.run_name))


def link_newest(latest: Path, name: str = "ep{epoch}-ba{batch}-rank0.pt") -> None:
    """Make the link to the newest checkpoint anew, if it is gone.

    Composer removes it after each checkpoint before it makes the next. After a kill in between, its autoresume would
    begin the run again.

    Args:
        latest: the link.
        name: of the checkpoints beside it, with what Composer fills in.
    """
    if latest.exists() or "{batch}" not in name:
        return
    before, after = (re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(part)) for part in name.split("{batch}", 1))
    found = {}
    for path in latest.parent.glob("*"):
        if match := re.fullmatch(f"{before}(\\d+){after}", path.name):
            found[int(match[1])] = path
    # One that is half written lacks the end by which a file of torch's is known.
    whole = [batch for batch in found if is_zipfile(found[batch])]
    if whole:
        newest = found[max(whole)]
        warn(
            f"{latest} is gone, as after a kill while Composer replaces it; it names the newest checkpoint beside it "
            f"again, {newest.name}. Remove the checkpoints too, if the run was to begin anew.",
            UserWarning,
            stacklevel=2,
        )
        latest.unlink(missing_ok=True)
        latest.symlink_to(newest.name)

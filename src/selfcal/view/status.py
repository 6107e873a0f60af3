"""Where a run stands: each stage done, in work or open, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfcal.errors import StoreError
from selfcal.lock import lock_holder
from selfcal.pipeline import Planned, locate, open_run
from selfcal.remote import shown
from selfcal.store import MARKER, PARTIAL, StageDir, read_json
from selfcal.view.plan import title
from selfcal.view.text import amount, duration, heading, key_figures, safe, table


def show_status(out: Console, run: Path) -> None:
    """Print where a run stands.

    Raises:
        StoreError: the folder is no run, or a manifest is damaged.
    """
    recipe = open_run(run)
    planned = locate(recipe, run)
    holder = safe(lock_holder(run))
    out.print(heading(title(recipe)))
    out.print(f"run      {safe(shown(run))}", soft_wrap=True)
    out.print(f"process  {holder or 'none works on it'}", soft_wrap=True)
    out.print()
    rows = table("", "stage", "time", "figures", right=["time"])
    seconds = 0.0
    for p in planned:
        mark, style, took, figures = _row(p, at_work=bool(holder))
        seconds += took
        time = duration(took) if p.folder.done else ""
        rows.add_row(mark, Text(safe(p.stage.name), style), Text(time), Text(figures, "dim"))
    out.print(rows)
    out.print()
    done = sum(p.folder.done for p in planned)
    out.print(f"{done} of {len(planned)} stages are finished; they took {duration(seconds)}.")
    out.print(_next(run, planned, bool(holder)), soft_wrap=True)


def _row(p: Planned, at_work: bool) -> tuple[str, str, float, str]:
    """Mark, style, seconds and figures of a stage."""
    if p.folder.done:
        manifest = p.folder.manifest()
        return "✓", "", float(manifest["seconds"]), key_figures(manifest["stats"])
    if begun(p.folder):
        state = "in work" if at_work else "was interrupted"
        return "…", "bold", 0.0, f"{state}: {progress_on_disk(p)}"
    return "·", "dim", 0.0, f"{amount(p.stage.size, p.stage.unit)} to do"


def begun(folder: StageDir) -> bool:
    """Whether a stage was begun with these settings and is not finished."""
    try:
        return (
            not folder.done and read_json(folder.path / MARKER)["fingerprint"] == folder.fingerprint
        )
    except (StoreError, LookupError, TypeError):
        return False


def progress_on_disk(p: Planned) -> str:
    """How far an unfinished stage is, by what survives a kill."""
    saved = [int(m[1]) for f in p.folder.path.glob("trl/*") if (m := re.search(r"-(\d+)$", f.name))]
    if saved:
        return f"a checkpoint at step {max(saved):,} of {p.stage.size:,}"
    shards = [f for f in p.folder.path.glob("shards/*") if not f.name.endswith(PARTIAL)]
    if not shards:
        return f"nothing saved yet of {amount(p.stage.size, p.stage.unit)}"
    words = "1 shard is" if len(shards) == 1 else f"{len(shards)} shards are"
    return f"{words} saved, of {amount(p.stage.size, p.stage.unit)}"


def _next(run: Path, planned: Sequence[Planned], held: bool) -> str:
    if all(p.folder.done for p in planned):
        if any(p.stage.name.startswith("eval/") for p in planned):
            return f"Next: {command('results', run)}"
        made = [path for p in planned if (path := p.folder.path / "checkpoint").is_dir()]
        return "Nothing is measured." + (f" The checkpoint: {safe(str(made[-1]))}" if made else "")
    if held:
        return f"Next: wait, and look again with {command('status', run)}"
    return f"Next: {command('run', '--out', run)}"


def command(*words: object) -> str:
    """A command of selfcal, quoted for the shell."""
    return shlex.join(["selfcal", *map(shown, words)])

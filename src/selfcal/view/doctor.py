"""What this machine has of what selfcal needs, and the way out where something is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.policy import SHIPPED, ModelError, model_path
from selfcal.tracking import PACKAGES
from selfcal.view.text import amount, safe

Mark = Literal["✓", "!", "✗"]
_STYLES = {"✓": "green", "!": "yellow", "✗": "red"}
_GIB = 2**30
_MODELS = ("mini-llava", "mini-judge", "mini-clip")
_OPTIONAL = {
    "ray": "runs on several machines (executor: ray); pip install 'selfcal[ray]'",
    **dict.fromkeys(PACKAGES, "tracking by it; pip install 'selfcal[tracking]'"),
    "torchvision": "the image processors of some models; pip install torchvision",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `✗` alone means that no run can start."""

    mark: Mark
    what: str
    found: str
    way_out: str = ""


def checks(folder: Path) -> Iterator[Check]:
    """Everything that is looked at; `folder` is where runs would be written."""
    yield _python()
    yield from _machine(folder)
    yield from _packages()
    yield _devices()
    for name in _MODELS:
        yield _model(name)
    for package, purpose in _OPTIONAL.items():
        if find_spec(package) is None:
            yield Check("!", package, "missing, optional", f"only for {purpose}")
        else:
            yield Check("✓", package, _version(package) or "found")


def show_doctor(out: Console, folder: Path) -> bool:
    """Print all checks; whether a run could start."""
    found = list(checks(folder))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for check in found:
        words = Text(safe(check.found))
        if check.way_out:
            words.append(f"\n{safe(check.way_out)}", "yellow" if check.mark == "!" else "red")
        grid.add_row(Text(check.mark, _STYLES[check.mark]), Text(check.what), words)
    out.print(grid)
    out.print()
    broken = [c.what for c in found if c.mark == "✗"]
    if broken:
        out.print(f"No run can start: mend {', '.join(broken)}.")
    elif any(c.mark == "!" for c in found):
        out.print("A run can start; what is marked ! limits which.")
    else:
        out.print("All is well.")
    return not broken


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}"
    return Check("✓", "python", found)


def _machine(folder: Path) -> Iterator[Check]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    yield Check("✓", "processor", amount(cores, "cores"))
    if memory := _memory():
        small = "less than the 2 GB that MiniWorld takes; close other programs"
        mark: Mark = "✓" if memory >= 2 * _GIB else "!"
        yield Check(mark, "memory", f"{memory / _GIB:.1f} GB", "" if mark == "✓" else small)
    free = shutil.disk_usage(_existing(folder)).free
    full = free < _GIB
    yield Check(
        "!" if full else "✓",
        "disk",
        f"{free / _GIB:.1f} GB free in {_existing(folder)}",
        "a run of MiniWorld takes up to 1 GB: free some, or give another folder" if full else "",
    )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(p for p in (folder, *folder.parents) if p.exists())


def _packages() -> Iterator[Check]:
    """The packages that selfcal names as needed, with their versions."""
    try:
        needed = metadata.requires("selfcal") or []
        from packaging.requirements import Requirement
    except (metadata.PackageNotFoundError, ModuleNotFoundError):
        way_out = "pip install selfcal (or: pip install --editable .)"
        yield Check("!", "packages", "selfcal is not installed, versions are unknown", way_out)
        return
    good: list[str] = []
    for requirement in map(Requirement, needed):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if fits:
            good.append(f"{requirement.name} {version}")
        else:
            asked = f"{requirement.name}{requirement.specifier}"
            found = f"{version or 'missing'}, {requirement.specifier} is needed"
            yield Check("✗", requirement.name, found, f"pip install '{asked}'")
    if good:
        yield Check("✓", "packages", ", ".join(good))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("✗", "torch", f"cannot be loaded: {error}", "install torch anew")
    built = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        slow = "enough for MiniWorld; models of billions of weights need a GPU"
        return Check("!", "devices", f"{built}, no GPU", slow)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("✓", "devices", f"{built}, {', '.join(names)}")


def _model(name: str) -> Check:
    what, way_out = f"{SHIPPED}{name}", f"selfcal miniworld train OUT --only {name}"
    try:
        file = Path(model_path(what)) / "model.safetensors"
    except ModelError:
        return Check("!", what, "missing", f"only for MiniWorld recipes; {way_out}")
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return Check("!", what, "not looked at: safetensors is missing")
    try:
        with safe_open(str(file), framework="numpy") as weights:
            tensors = len(list(weights.keys()))
    except (OSError, SafetensorError) as error:
        return Check("!", what, f"damaged ({error})", f"install selfcal again, or: {way_out}")
    return Check("✓", what, f"{tensors} tensors, {file.stat().st_size / 2**20:.1f} MB")

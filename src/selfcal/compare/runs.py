"""Recipes and seeds in, finished runs out: each one a process, `selfcal run`, of its own.

A comparison's folder holds `runs/NAME/seed-N`, and beside it `recipes/` (each recipe with all that
the command changed in it) and `logs/`. Runs of one seed go one after the other, each reusing what
lies there of that seed, so that equal stages are done once; seeds go side by side. The same command
again goes on where it was left.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from selfcal import stopping
from selfcal.errors import SelfcalError, StoreError
from selfcal.lock import LOCK_FILES
from selfcal.pipeline import RECIPE_FILE, locate, pin
from selfcal.recipe import Recipe, load_recipe, nearest
from selfcal.store import explained, read_json, write_json, write_text

SETTINGS_FILE = "settings.json"
"""What a comparison was started with; its existence means that a folder is one."""
_PATIENCE = 10.0
"""Seconds that a run that is told to end gets for it."""
_GLANCE = 0.2
"""Seconds between two looks at whether a stop was asked for."""
State = Literal["begins", "ends", "fails", "was finished"]
Tell = Callable[[str, int, State], None]
"""Is told a recipe's name, a seed, and how its run stands."""


@dataclass(frozen=True)
class Place:
    """The folder of a comparison."""

    out: Path

    def run(self, name: str, seed: int) -> Path:
        """The folder of a run."""
        return self.out / "runs" / name / f"seed-{seed}"

    def recipe(self, name: str, seed: int) -> Path:
        """The recipe file of a run."""
        return self.out / "recipes" / name / f"seed-{seed}.yaml"

    def log(self, name: str, seed: int) -> Path:
        """What a run printed."""
        return self.out / "logs" / name / f"seed-{seed}.log"

    def others(self, name: str, seed: int) -> list[Path]:
        """All runs of that seed but this one."""
        found = sorted((self.out / "runs").glob(f"*/seed-{seed}"))
        mine = self.run(name, seed)
        return [run for run in found if run != mine and (run / RECIPE_FILE).exists()]

    def check(self) -> None:
        """Refuse a folder that is something else.

        Raises:
            StoreError: it is a file, or holds other things.
        """
        if self.out.is_file():
            raise StoreError(f"{self.out} is a file; give a folder for the comparison")
        names = {p.name for p in self.out.iterdir()} if self.out.is_dir() else set()
        if names - set(LOCK_FILES) and not self._is_one():
            what = "is a run of selfcal" if RECIPE_FILE in names else "is not empty"
            raise StoreError(f"{self.out} {what} and is no comparison; give another folder")

    def _is_one(self) -> bool:
        try:
            return {"format", "recipes", "seeds"} <= set(read_json(self.out / SETTINGS_FILE))
        except (StoreError, TypeError):
            return False


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error."""

    recipe: str
    seed: int
    log: str
    """Path of what it printed."""
    said: str
    """The last line of that, or which signal ended it."""


# --- what is asked for ----------------------------------------------------------------------


def read_seeds(text: str) -> list[int]:
    """Seeds, as in `0,1,2`.

    Raises:
        SelfcalError: something else stands there, or a seed twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise SelfcalError(f"--seeds {text!r}: write numbers with commas, such as --seeds 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise SelfcalError(f"--seeds {text!r}: names a seed twice; give each once")
    return seeds


def load_recipes(files: Sequence[Path], overrides: Sequence[str], split: str) -> list[Recipe]:
    """The recipes to compare, each with the overrides, its models pinned and its plan checked.

    Raises:
        SelfcalError: a file cannot be read, a name is no folder's or stands for two recipes, or a
            recipe does not measure the split.
    """
    by_name: dict[str, Path] = {}
    recipes = []
    for file in files:
        recipe = pin(load_recipe(file, overrides))
        name = recipe.name
        if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
            raise SelfcalError(
                f"{file}: name {name!r} is to be a folder's, too; use letters, digits, - and _"
            )
        if name in by_name:
            raise SelfcalError(
                f"{by_name[name]} and {file} are both named {name!r}; "
                "change `name` in one, as it stands for its column"
            )
        if split not in recipe.evaluate.splits or not getattr(recipe.data, split):
            raise SelfcalError(
                f"{file}: does not measure {split!r}; "
                f"add it to evaluate.splits and give data.{split}, or give another --split"
            )
        planned = locate(recipe, Path())  # refuses what cannot be planned before anything runs
        if not any(p.stage.name.startswith("eval/") for p in planned):
            raise SelfcalError(f"{file}: method {recipe.method!r} measures nothing to compare")
        by_name[name] = file
        recipes.append(recipe)
    return recipes


def pick_baseline(name: str | None, recipes: Sequence[Recipe]) -> str:
    """The name of the recipe that all others are compared with: the first, unless one is named.

    Raises:
        SelfcalError: there is no such recipe.
    """
    names = [r.name for r in recipes]
    if name is None:
        return names[0]
    if name not in names:
        near = nearest(name, names)
        hint = f"; did you mean `{near}`?" if near else ""
        raise SelfcalError(f"--baseline {name!r}: no such recipe{hint} (here: {', '.join(names)})")
    return name


# --- carrying it out ------------------------------------------------------------------------


@dataclass
class Runner:
    """Carries runs out as processes of their own."""

    place: Place
    recipes: Sequence[Recipe]
    seeds: Sequence[int]
    tell: Tell
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _starting: threading.Lock = field(default_factory=threading.Lock)
    """Held while a run starts, so that none starts unseen by `stop`."""

    def carry_out(self, jobs: int = 1) -> list[Failure]:
        """Run all that is not finished; a recipe that fails does not stop the others.

        Raises:
            Stopped: that was asked for; each run keeps what is finished of it.
        """
        write_json(
            self.place.out / SETTINGS_FILE,
            {"format": 1, "recipes": [r.name for r in self.recipes], "seeds": list(self.seeds)},
        )
        with ThreadPoolExecutor(jobs) as pool:
            failed = [f for failures in pool.map(self._seed, self.seeds) for f in failures]
        stopping.heed()
        return failed

    def stop(self) -> None:
        """End what runs; it can be resumed."""
        with self._starting:
            self._stopped.set()
            children = list(self._children)
        for child in children:
            child.terminate()
        for child in children:  # so that the same command finds no run in use
            with suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE)

    def _seed(self, seed: int) -> list[Failure]:
        found = [self._run(recipe, seed) for recipe in self.recipes]
        return [f for f in found if f is not None]

    def _run(self, recipe: Recipe, seed: int) -> Failure | None:
        name = recipe.name
        if finished(self.place, recipe, seed):
            self.tell(name, seed, "was finished")
            return None
        if self._stopped.is_set() or stopping.asked():
            return None
        self.tell(name, seed, "begins")
        file, log = self.place.recipe(name, seed), self.place.log(name, seed)
        write_text(file, yaml.safe_dump(seeded(recipe, seed).model_dump(mode="json")))
        words = ["run", str(file), "--out", str(self.place.run(name, seed))]
        words += [w for other in self.place.others(name, seed) for w in ("--reuse", str(other))]
        code = self._call([sys.executable, "-m", "selfcal", *words], log)
        if self._stopped.is_set() or stopping.asked():
            return None  # whether it has failed, the next time tells
        self.tell(name, seed, "fails" if code else "ends")
        if not code:
            return None
        said = _last_line(log) if code > 0 else f"was ended by signal {-code}"
        return Failure(name, seed, str(log), said)

    def _call(self, command: Sequence[str], log: Path) -> int:
        with explained("write", log):
            log.parent.mkdir(parents=True, exist_ok=True)
            file = log.open("wb")
        with file:
            with self._starting:
                if self._stopped.is_set():
                    return 1
                # in a session of its own: a Ctrl-C reaches it through us alone, and just once
                child = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._children.add(child)
            with child:
                code = _ended(child)
            self._children.discard(child)
        return code


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, and pass the wish to stop on to it; gives its exit code."""
    told = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(_GLANCE)
        if stopping.asked() and not told:
            child.terminate()  # it stops after the batch in work
            told = True


def finished(place: Place, recipe: Recipe, seed: int) -> bool:
    """Whether the run of a pinned recipe has all its stages, as the recipe is now."""
    run = place.run(recipe.name, seed)
    planned = locate(seeded(recipe, seed), run)
    return (run / RECIPE_FILE).exists() and all(p.folder.done for p in planned)


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with that seed."""
    return recipe.model_copy(update={"seed": seed})


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

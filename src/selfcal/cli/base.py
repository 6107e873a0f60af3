"""What the commands share: their settings and arguments, errors in one line, and the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from selfcal import stopping
from selfcal.errors import SelfcalError


class Commands(TyperGroup):
    """Says selfcal's own errors in one line; all others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SelfcalError as error:
            from selfcal.view.text import console, safe

            text = f"error: {safe(str(error), lines=True)}"
            console(stderr=True).print(text, style="red", soft_wrap=True)
            raise typer.Exit(1) from error


SETTINGS: dict[str, Any] = {
    "cls": Commands,
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)
]


def a_run(part: Literal["accounts", "records", "images", "all", "sizes"]) -> Any:
    """The argument RUN; of a run on a store, this part is brought here to be looked at.

    `sizes`: names and sizes of all files, and what manifests say of them.
    """

    def parse(text: str) -> Path:
        from selfcal.remote import look, shape

        return shape(text) if part == "sizes" else look(text, part)

    about = "Folder of a run, or its address on a store (s3://...)."
    return typer.Argument(metavar="RUN", help=about, show_default=False, parser=parse)


def working(text: str) -> Path:
    """The folder in which a run is worked on; a mirror, if it is on a store."""
    from selfcal.remote import working_folder

    return working_folder(text)


def accounts(text: str) -> Path:
    """The folder of a run; of one on a store, what it says of its stages is brought here."""
    from selfcal.remote import look

    return look(text, "accounts")


def accounts_if_any(text: str) -> Path:
    """As `accounts`, where there may be no run yet."""
    from selfcal.remote import look

    return look(text, "accounts", must=False)


def here(text: str) -> Path:
    """A path on this machine.

    Raises:
        SelfcalError: it is an address.
    """
    from selfcal.remote import is_address

    if is_address(text):
        raise SelfcalError(
            f"{text}: this takes a path on this machine; addresses are for `run`, and for commands "
            "that look at runs (docs/storage.md)"
        )
    return Path(text)


Run = Annotated[Path, a_run("records")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as dpo.beta=0.2."),
]


def examples(*commands: str) -> str:
    """Commands to copy, below a help text."""
    return "\n\n".join(f"[dim]$[/dim] selfcal {command}" for command in commands)


@contextmanager
def stoppable(command: str, close: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM: the first stops the work after the batch that is in work, with exit 0.

    The second ends the process on the spot, not by an exception: one that comes up inside of
    torch's C++ aborts. Nothing is lost either way, as all that is written is written atomically.

    Args:
        command: goes on with the work.
        close: tidies up the screen, and what else must not outlive this process.
    """
    said = f"Stopped; what is finished is kept. Go on with:\n  {command}\n"
    stopping.forget()

    def stop(number: int, frame: object) -> None:
        if not stopping.asked():
            stopping.ask()
            with suppress(OSError):  # such as a `tee` that the same Ctrl-C has ended
                os.write(2, _ASKED)
            return
        with suppress(Exception):
            close()
        with suppress(OSError):
            os.write(2, said.encode(errors="replace"))
        end(130)

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)
    try:
        yield
    except stopping.Stopped:
        with suppress(Exception):
            close()  # before the last line, which a live display would draw over
        with suppress(OSError):
            typer.echo(said, err=True, nl=False)
        raise typer.Exit from None
    except KeyboardInterrupt:  # raised by a library
        with suppress(OSError):
            typer.echo(said, err=True, nl=False)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stopping.forget()


_ASKED = b"\nStopping after the batch in work; again to leave at once.\n"
end = os._exit

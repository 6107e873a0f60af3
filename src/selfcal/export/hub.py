"""An export to the Hugging Face hub, with its card.

Who may write there is the hub's own business: the token comes from its login or its environment
variable, and never goes through selfcal.
"""

from __future__ import annotations

from pathlib import Path

from selfcal.export.build import Exported
from selfcal.export.images import Keep
from selfcal.export.rows import ExportError
from selfcal.store import explained

_TEXT = (".md", ".json", ".jsonl")


def check_push(name: str, keep: Keep) -> None:
    """Refuse what cannot go to the hub, before anything is exported.

    Raises:
        ExportError: `name` cannot be a dataset's, or images would not be in it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ExportError(f"--push-to-hub {name}: {error}; give USER/NAME") from error
    if keep == "path":
        raise ExportError(
            "--push-to-hub: with `--images path` the images are not in the export, and their "
            "paths tell where they lie on this machine; take `--images copy`"
        )


def push(exported: Exported, name: str, private: bool) -> str:
    """Upload an export in one commit; gives its address.

    Raises:
        ExportError: it would tell where files lie on this machine, the hub refused, or it cannot
            be reached.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    check_push(name, exported.keep)
    _refuse_places(exported)
    api, hub = HfApi(), (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled)
    try:
        api.create_repo(name, repo_type="dataset", private=True if private else None, exist_ok=True)
        # one that was there before keeps who may see it
        if private and not api.repo_info(name, repo_type="dataset").private:
            raise ExportError(
                f"{name} is there already, and everybody can see it; make it private on the hub, "
                "or give another name"
            )
        done = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=exported.folder,
            commit_message=f"{exported.contents.examples:,} examples of selfcal",
        )
    except (*hub, HTTPError, ValueError) as error:  # ValueError: of the card
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ExportError(
            f"{name}: the hub did not take it ({first}); log in by `hf auth login` or set HF_TOKEN "
            f"if that is missing. The export is in {exported.folder}: `hf upload {name} "
            f"{exported.folder} --repo-type dataset{' --private' if private else ''}` uploads it"
        ) from error
    return str(done.repo_url)


def _refuse_places(exported: Exported) -> None:
    """Refuse an export that says where files lie on this machine."""
    places = {f"{p.resolve()}/" for p in (exported.source.run, exported.folder, Path.home())}
    for file in sorted(exported.folder.iterdir()):
        if file.suffix in _TEXT:
            with explained("read", file):
                text = file.read_text(encoding="utf-8")
            if found := next((place for place in places if place in text), None):
                raise ExportError(
                    f"{file} has the path {found} of this machine in it; rename what it comes "
                    "from, and export again"
                )

"""People check the judge: a local web app, their labels, and how far all agree.

Pairs that a run's judge compared are drawn (`pick`) and shown blind in a browser (`server`). What
people say of them is kept in the run (`labels`), held against each other, the judge and the
verifier (`agreement`), and handed on as training data of a judge (`export`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfcal.people.agreement import Agreement


def agreement_of(run: Path) -> Agreement | None:
    """How far people, judge and verifier agree in a run; None where nobody labelled anything.

    Raises:
        SelfcalError: it is no run, has no judgments, or the labels cannot be read.
    """
    from selfcal.people import agreement

    return agreement.agreement_of(run)

"""A run's folder in, one HTML file out that people can look at: overview, samples, data."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from selfcal.store import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: Path, out: Path, samples: int, assets: Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run: folder of the run.
        out: the HTML file.
        samples: how many samples it shows at most.
        assets: folder that the images are written to; None: they are inside of the file.

    Returns:
        The file.

    Raises:
        SelfcalError: the folder is no run, a file of it is damaged, something else lies where the
            report would, or the system refused.
    """
    from selfcal.page import render
    from selfcal.report.dropped import data_context
    from selfcal.report.overview import overview_context, summary
    from selfcal.report.place import check_places
    from selfcal.report.record import read_record
    from selfcal.report.samples import SCRIPT, STYLE, samples_context

    record = read_record(run)
    check_places(record, out, assets)
    text = render(
        TEMPLATES,
        "report.html.j2",
        scripts=[(TEMPLATES / "report.js").read_text("utf-8"), SCRIPT],
        styles=[(TEMPLATES / "report.css").read_text("utf-8"), STYLE],
        beside=assets is not None,
        title=record.recipe.name,
        summary=summary(record),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        overview=overview_context(record),
        dropped=data_context(record),
        samples=samples_context(run, samples, assets, out.parent),
    )
    write_text(out, text)
    return out

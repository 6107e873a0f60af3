"""What a run made, as a dataset for another tool: its preference pairs, or the teacher's RAPs.

`rows` reads them out of a run, `formats` knows how each tool wants a row to look, `images` puts the
images beside them by content, `card` writes the dataset card, `build` joins these to a folder that
is there whole or not at all, and `hub` uploads it.
"""

from __future__ import annotations

from selfcal.export.build import Exported, Wanted, export_run
from selfcal.export.formats import FORMATS
from selfcal.export.hub import check_push, push
from selfcal.export.images import Keep
from selfcal.export.rows import Split

__all__ = [
    "FORMATS", "Exported", "Keep", "Split", "Wanted", "check_push", "export_run", "push",
]  # fmt: skip

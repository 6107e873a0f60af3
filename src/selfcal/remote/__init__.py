"""Runs on a remote store, through fsspec: `s3://BUCKET/runs/NAME`, `gs://...`.

All work is done on a folder of this machine, so nobody else knows of stores: the folder mirrors the
run, and what is finished goes up at once. Who has a run's folder finds its `Place` by `place_of`.
"""

from selfcal.remote.address import is_address
from selfcal.remote.doors import (
    look,
    mirror_of,
    open_run_place,
    place_of,
    reshape,
    shape,
    shown,
    working_folder,
)
from selfcal.remote.place import Place, Read

__all__ = [
    "Place", "Read", "is_address", "look", "mirror_of", "open_run_place", "place_of", "reshape",
    "shape", "shown", "working_folder",
]  # fmt: skip

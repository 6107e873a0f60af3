"""Reading samples from files of many formats, mixing them, and splitting them by image."""

from selfcal.data.door import DataFile, open_data, split_files
from selfcal.data.draw import Draw, draw_mix, order
from selfcal.data.pictures import Checker, Rules
from selfcal.data.read import Kept, insist, read, read_samples, save_embedded
from selfcal.data.rows import DataError
from selfcal.image import ImageError, check_image, load_image

__all__ = [
    "Checker", "DataError", "DataFile", "Draw", "ImageError", "Kept", "Rules", "check_image",
    "draw_mix", "insist", "load_image", "open_data", "order", "read", "read_samples",
    "save_embedded", "split_files",
]  # fmt: skip

"""Reading samples from files, and drawing a mix of them."""

from selfcal.data.read import DataError, draw_mix, read_samples
from selfcal.image import ImageError, check_image, load_image

__all__ = ["DataError", "ImageError", "check_image", "draw_mix", "load_image", "read_samples"]

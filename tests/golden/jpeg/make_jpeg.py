"""Writes the PNG pictures of this folder and, beside each, the JPEG that Pillow makes of it at quality 95.

Made with Pillow 13.0.0 (libjpeg-turbo 3.2.0) and numpy. Run: python make_jpeg.py [DIRECTORY]
"""

import pathlib
import sys

import numpy as np
from PIL import Image


def waves(width, height):
    """Smooth colour with a little texture, as in a photograph."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [128 + 90 * np.sin(x / (5 + c)) * np.cos(y / (7 - c)) + 20 * np.sin(x * y / 9) for c in range(3)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def shapes(width, height):
    """A red square and a white one on a dark ground."""
    picture = np.full((height, width, 3), 24, np.uint8)
    picture[1:7, 2:8] = [240, 24, 24]
    picture[9:15, 8:14] = 240
    return picture


PICTURES = {
    "shapes_16x16": shapes(16, 16),
    "noise_17x13": noise(17, 13),
    "waves_64x48": waves(64, 48),
    "waves_101x37": waves(101, 37),
    "noise_1x1": noise(1, 1),
    "waves_1x40": waves(1, 40),
}

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for name, pixels in PICTURES.items():
        picture = Image.fromarray(pixels)
        picture.save(directory / f"{name}.png", optimize=True)
        picture.save(directory / f"{name}.jpg", "JPEG", quality=95)

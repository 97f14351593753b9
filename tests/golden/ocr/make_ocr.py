"""Writes the PNG pictures of this folder: words as a model might draw them, in DejaVu's faces.

Made with Pillow 13.0.0 and numpy. Run: python make_ocr.py [DIRECTORY]
"""

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FACES = pathlib.Path("/usr/share/fonts/truetype/dejavu")


def slope(left, right, size=256):
    """A ground that goes from one colour to another, left to right."""
    along = np.linspace(0, 1, size)[None, :, None]
    row = (1 - along) * np.array(left) + along * np.array(right)
    return Image.fromarray(np.repeat(row, size, 0).astype(np.uint8))


def write(picture, place, text, size, color, face="DejaVuSans-Bold"):
    font = ImageFont.truetype(str(FACES / f"{face}.ttf"), size)
    ImageDraw.Draw(picture).multiline_text(place, text, font=font, fill=color)
    return picture


PICTURES = {
    "dark_on_light": write(slope((250, 240, 210), (150, 200, 240)), (24, 90), "Grand\nOpening", 44, (40, 20, 60)),
    "light_on_dark": write(slope((10, 20, 60), (120, 20, 40)), (30, 100), "CLOSED", 48, (250, 240, 200)),
    "misspelt": write(slope((240, 240, 240), (200, 230, 200)), (16, 100), "Coffe Shop", 36, (30, 30, 30), "DejaVuSerif"),
    "small": write(slope((255, 255, 255), (220, 220, 255)), (40, 120), "mind the gap", 14, (0, 0, 0), "DejaVuSans"),
    "nothing": slope((90, 160, 90), (60, 90, 160)),
}

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for name, picture in PICTURES.items():
        picture.save(directory / f"{name}.png", optimize=True)

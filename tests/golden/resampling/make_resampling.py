"""Pictures and what Pillow 13 makes of them by `resize` with the bicubic filter: `python make_resampling.py`."""
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
# Picture, then the sizes it is resized to.
CASES = {
    (64, 48): [(64, 48), (224, 168), (16, 12), (64, 21), (37, 48), (31, 97), (101, 13), (1, 1)],
    (101, 37): [(33, 12), (102, 38), (100, 36), (7, 300), (56, 37)],
    (1, 40): [(5, 7), (1, 9), (3, 40), (1, 80)],
    (23, 1): [(7, 5), (46, 1), (1, 1)],
    (1, 1): [(6, 4)],
}


def picture(width, height):
    """Left half noise of black and white, which overshoots; right half waves."""
    rng = np.random.default_rng(width * 1000 + height)
    noise = rng.integers(0, 2, (height, width, 3)) * 255
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127.5 + 127.5 * np.sin(columns / 3 + rows / 5)
    waves = np.stack([waves, waves.max() - waves, rows * 255 / height], axis=-1)
    return Image.fromarray(np.where((columns < width / 2)[..., None], noise, waves).astype(np.uint8))


for (width, height), sizes in CASES.items():
    image = picture(width, height)
    image.save(HERE / f"{width}x{height}.png")
    for target in sizes:
        image.resize(target, Image.Resampling.BICUBIC).save(HERE / f"{width}x{height}_to_{target[0]}x{target[1]}.png")

"""How well Tesseract reads words on pictures of 512 x 512 by setting: what the scorer `ocr` chose its own by.

Draws words in DejaVu's faces at six sizes on four kinds of ground, reads them with each setting, and scores the readings
by the formula of crates/rewards/src/ocr.rs. Needs Pillow, numpy, Tesseract 5. Run: python ocr_settings.py
"""

import collections
import os
import pathlib
import resource
import subprocess
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 512
FACES = pathlib.Path("/usr/share/fonts/truetype/dejavu")
FACE_NAMES = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSerif-Italic"]
GROUNDS = ["plain", "smooth", "sign", "busy"]
HEIGHTS = [14, 20, 28, 40, 60, 90]
PICTURES_PER_CELL = 6
WORDS = (
    "open grand sale coffee welcome danger library market summer garden north exit museum bakery future quiet please "
    "hello world dream station number seven lucky stars ocean bridge winter fresh bread"
).split()


def any_color(rng):
    return tuple(int(value) for value in rng.integers(0, 256, 3))


def luma(color):
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def clouds(rng, cell):
    coarse = rng.integers(0, 256, (SIDE // cell + 1, SIDE // cell + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.BICUBIC)


def ground(kind, rng):
    """One colour; colours that flow into each other; and for signs and busy pictures, blurred shapes in front of those."""
    if kind == "plain":
        return Image.new("RGB", (SIDE, SIDE), any_color(rng))
    if kind == "smooth":
        return clouds(rng, 128)
    picture = Image.blend(clouds(rng, 128), clouds(rng, 16), 0.4)
    draw = ImageDraw.Draw(picture)
    for _ in range(25):
        x, y, radius = (int(rng.integers(*span)) for span in [(0, SIDE), (0, SIDE), (10, 90)])
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x - radius, y - radius, x + radius, y + radius], fill=any_color(rng))
    return picture.filter(ImageFilter.GaussianBlur(3))


def some_words(rng):
    cases = [str.upper, str.capitalize, str.lower]
    chosen = rng.choice(len(WORDS), int(rng.integers(1, 4)), replace=False)
    return [cases[rng.integers(3)](WORDS[index]) for index in chosen]


def draw_words(kind, height, rng):
    """A picture and its words, or nothing where they do not fit."""
    font = ImageFont.truetype(str(FACES / f"{FACE_NAMES[rng.integers(len(FACE_NAMES))]}.ttf"), height)
    picture, words, lines = ground(kind, rng), some_words(rng), [""]
    draw = ImageDraw.Draw(picture)
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        lines = lines[:-1] + [longer] if draw.textlength(longer, font=font) <= 440 or not lines[-1] else lines + [word]
    text = "\n".join(lines)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    width, tall = right - left, bottom - top
    if max(width, tall) > 490:
        return None
    x, y = (int(rng.integers(8, max(9, 504 - size))) for size in (width, tall))
    if kind == "sign":
        draw.rounded_rectangle([x - 12, y - 12, x + width + 12, y + tall + 12], 8, fill=any_color(rng))
    behind = np.asarray(picture.crop((x, y, x + width, y + tall))).reshape(-1, 3).mean(0)
    color = next(c for c in iter(lambda: any_color(rng), None) if abs(luma(c) - luma(behind)) > 90)
    draw.multiline_text((x - left, y - top), text, font=font, fill=color)
    if rng.random() < 0.5:
        picture = picture.rotate(float(rng.uniform(-4, 4)), Image.BICUBIC, fillcolor=tuple(int(v) for v in behind))
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8)))), " ".join(words)


def two_columns(rng):
    """Two signs of two lines beside each other, of which the left or the right one is the target."""
    picture = ground("busy", rng)
    draw, texts, y = ImageDraw.Draw(picture), [], int(rng.integers(40, 350))
    for x in (20, 276):
        text = "\n".join(WORDS[index] for index in rng.choice(len(WORDS), 2, replace=False))
        font = ImageFont.truetype(str(FACES / f"{FACE_NAMES[rng.integers(4)]}.ttf"), int(rng.integers(22, 40)))
        place, panel = (x, y + int(rng.integers(-12, 12))), any_color(rng)
        box = draw.multiline_textbbox(place, text, font=font)
        draw.rectangle([box[0] - 8, box[1] - 8, box[2] + 8, box[3] + 8], fill=panel)
        draw.multiline_text(place, text, font=font, fill=(0, 0, 0) if luma(panel) > 128 else (255, 255, 255))
        texts.append(text.replace("\n", " "))
    return picture, texts[rng.integers(2)]


def distance(text, target):
    row = list(range(len(target) + 1))
    for position, letter in enumerate(text):
        diagonal, row[0] = row[0], position + 1
        for column, wanted in enumerate(target):
            diagonal, row[column + 1] = row[column + 1], min(
                diagonal + (letter != wanted), row[column + 1] + 1, row[column] + 1
            )
    return row[-1]


def similarity(text, target):
    text, target = ("".join(words.split()).lower() for words in (text, target))
    return 1.0 if target in text else 1 - min(distance(text, target), len(target)) / len(target)


def read(pages, segmentation, method):
    """The text of every page, and seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for index, page in enumerate(pages):
            Image.fromarray(page).save(folder / f"{index}.pgm")
        (folder / "pages").write_text("".join(f"{index}.pgm\n" for index in range(len(pages))))
        options = ["-l", "eng", "--psm", str(segmentation), "-c", f"thresholding_method={method}", "tsv"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        ran = subprocess.run(
            ["tesseract", "pages", "stdout", *options], cwd=folder, env=environment, capture_output=True, text=True
        )
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    ran.check_returncode()
    words = collections.defaultdict(list)
    for line in ran.stdout.splitlines()[1:]:
        columns = line.split("\t")
        if columns[0] == "5" and float(columns[10]) > 0:
            words[int(columns[1])].append(columns[11])
    return ["".join(words[index + 1]) for index in range(len(pages))], seconds


def evaluate(pictures, segmentation, scale, method, negatives):
    pages = []
    for picture, _ in pictures:
        grey = np.asarray(picture.convert("L")).repeat(scale, 0).repeat(scale, 1)
        pages += [grey, 255 - grey] if negatives else [grey]
    texts, seconds = read(pages, segmentation, method)
    per_picture = len(pages) // len(pictures)
    scores = [
        max(similarity(text, target) for text in texts[index * per_picture : (index + 1) * per_picture])
        for index, (_, target) in enumerate(pictures)
    ]
    return np.array(scores), 1000 * seconds / len(pictures)


SETTINGS = [
    ("one threshold", 11, 1, 0, False),
    ("one threshold, doubled", 11, 2, 0, False),
    ("Sauvola, doubled", 11, 2, 2, False),
    ("Sauvola and negative", 11, 1, 2, True),
    ("Sauvola and negative, doubled", 11, 2, 2, True),
    ("the same, mode 3", 3, 2, 2, True),
    ("the same, mode 6", 6, 2, 2, True),
    ("the same, mode 12", 12, 2, 2, True),
]


def main():
    pictures, kinds = [], []
    for kind in GROUNDS:
        for height in HEIGHTS:
            rng, found = np.random.default_rng([GROUNDS.index(kind), height]), []
            while len(found) < PICTURES_PER_CELL:
                drawn = draw_words(kind, height, rng)
                found += [drawn] if drawn else []
            pictures += found
            kinds += [kind] * PICTURES_PER_CELL
    rng = np.random.default_rng(5)
    columns = [two_columns(rng) for _ in range(48)]
    kinds = np.array(kinds)
    print("| setting | all | exact | " + " | ".join(GROUNDS) + " | two columns | ms |")
    print("|---|" + "---|" * (len(GROUNDS) + 4))
    for label, *setting in SETTINGS:
        scores, cost = evaluate(pictures, *setting)
        beside, _ = evaluate(columns, *setting)
        means = [scores.mean(), (scores == 1).mean(), *(scores[kinds == kind].mean() for kind in GROUNDS), beside.mean()]
        print(f"| {label} | " + " | ".join(f"{mean:.2f}" for mean in means) + f" | {cost:.0f} |", flush=True)


if __name__ == "__main__":
    main()

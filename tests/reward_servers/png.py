"""Reads PNG files of 8-bit RGB: how bright a picture is, 0 to 1."""

import struct
import zlib


def mean_brightness(file):
    pixels = decoded(file)
    return sum(pixels) / (255 * len(pixels))


def decoded(file):
    """The bytes of all pixels, rows from the top."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG file"
    position, data = 8, b""
    while position < len(file):
        length, kind = struct.unpack(">I4s", file[position : position + 8])
        chunk = file[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", chunk)
            assert form == [8, 2, 0, 0, 0], f"not 8-bit RGB: {form}"
        if kind == b"IDAT":
            data += chunk
        position += 12 + length
    return unfiltered(zlib.decompress(data), 3 * width, height)


def unfiltered(data, stride, height):
    above, pixels = bytes(stride), bytearray()
    for start in range(0, height * (stride + 1), stride + 1):
        kind, line = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for i in range(stride):
            left, corner = (line[i - 3], above[i - 3]) if i >= 3 else (0, 0)
            guess = (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]
            line[i] = (line[i] + guess) & 255
        above = bytes(line)
        pixels += line
    return pixels


def paeth(left, above, corner):
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))

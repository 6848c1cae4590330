"""What is in this picture?"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # as Pillow names them
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
MAX_PIXELS = 100_000_000

HASH_DISTANCE = (
    4  # bits of 64; copies at JPEG quality 30 or at half the size differ by that at most, by 0.3 in the mean
)
COLOUR_DISTANCE = 12  # levels of 255 between the mean colours of sixteenths; such copies differ by 4 at most
MEASURED_SIDE = 256  # pixels of the short side, at which pictures are compared
NEIGHBOURS = 500  # with so many others, at most, a hash is compared in each band

BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, AssertionError),
    *(struct.error, zlib.error, RuntimeError),
)  # what Pillow's decoders raise when bytes are not what they should be

ORIENTATION = 0x0112  # the EXIF tag


class BadPicture(ValueError):
    """A picture that cannot be read; the text is a short reason: 'truncated', 'not an image'."""


@dataclass(frozen=True)
class Survey:
    """What one look at a picture tells."""

    sha256: str  # of the file's bytes
    width: int  # pixels of the upright picture
    height: int
    hash: int  # see perceptual_hash
    colours: bytes  # mean colour of each sixteenth, 4 x 4 x 3 levels


def open_picture(source: str | Path | bytes, channels: int = 3) -> Image:
    """A file, or the bytes of one, as an upright picture of 8 bits: mode RGB for 3 channels, L (grey) for 1.

    The EXIF orientation is applied, transparency lies on white, an animation shows its first frame, CMYK and palettes
    become RGB as Pillow converts them (a colour profile is not applied). Grey of 16 bits is scaled by its full range,
    v / 257; of 16-bit colour Pillow reads the upper byte. BadPicture for what cannot be read, for floating-point or
    32-bit pixels, whose white nothing tells, and, before it is decoded, for more than 100 million pixels.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    with _read(source) as file:
        picture = _open(file)
        picture.load()
        return _turn_upright(_to_8_bits(picture, mode), _orientation(picture))


def survey(source: str | Path | bytes) -> Survey:
    """Read a picture to its end, a large JPEG at reduced scale, and note what tells it from others; or BadPicture."""
    with _read(source) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        picture = _open(file)
        width, height = picture.size
        picture.draft(None, (128, 128))  # a JPEG's decoder may halve it while both sides stay so long
        picture.load()
        orientation = _orientation(picture)
        if orientation >= 5:
            width, height = height, width
        upright = _turn_upright(_to_8_bits(picture, "RGB"), orientation)
    small = upright.reduce(max(1, min(upright.size) // 128))
    return Survey(sha256, width, height, perceptual_hash(small), _mean_colours(small))


def picture_measures(picture: Image) -> dict[str, float]:
    """Numbers by which a model's errors may differ, of an upright picture of 8 bits.

    `short_side` in pixels; `aspect_ratio`, its width over its height; `brightness`, the mean, and `contrast`, the
    standard deviation, of its grey, from 0 to 1; and `sharpness`, the standard deviation of what a Laplacian finds at
    256 pixels of the short side: low where it is blurred (Pech-Pacheco et al. 2000), compared at one size so that a
    large picture is not called sharper than the same one at half its size. One of fewer pixels is blurred at that size.
    All sums are of whole numbers, so the values are the same on every machine.
    """
    from PIL.Image import Resampling

    scale = MEASURED_SIDE / min(picture.size)
    size = [max(3, min(4 * MEASURED_SIDE, round(side * scale))) for side in picture.size]
    small = picture.convert("L").resize(size, Resampling.BILINEAR, reducing_gap=2.0)
    grey = np.asarray(small, np.int32)  # 0 to 255
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return {
        "short_side": float(min(picture.size)),
        "aspect_ratio": picture.width / picture.height,
        "brightness": int(grey.sum(dtype=np.int64)) / grey.size / 255,
        "contrast": _deviation(grey) / 255,
        "sharpness": _deviation(laplacian) / 255,
    }


def _deviation(values: np.ndarray) -> float:
    """The standard deviation of whole numbers, from sums that are exact in any order."""
    total, squares = (int(part.sum(dtype=np.int64)) for part in (values, values * values))
    return math.sqrt(values.size * squares - total**2) / values.size


def perceptual_hash(picture: Image) -> int:
    """64 bits that stay, but for a few, when a picture is resized or compressed again.

    They say which of its 8 x 8 lowest frequencies, but for the mean, are stronger than their median: the DCT hash of
    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    from PIL.Image import Resampling
    from scipy.fft import dctn

    grey = np.asarray(picture.convert("L").resize((32, 32), Resampling.BILINEAR), np.float64)
    low = np.rint(
        dctn(grey, norm="ortho")[1:9, 1:9]
    )  # whole: of a plain surface only noise is left, which says nothing
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def group_alike(hashes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """For each picture, (pictures,), the number of its group of those that look the same; groups count up from 0.

    `hashes` (pictures,) uint64 and `colours` (pictures, 48) uint8 come from surveys. Pictures that differ in 4 bits or
    fewer, and in no mean colour by more than 12 levels, are one group, and so are those that others link. Of hashes in
    five bands, two that differ in four bits have one band in common: only such are compared.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    looks, places = np.unique(
        np.concatenate([hashes[:, None].view(np.uint8), colours], axis=1), axis=0, return_inverse=True
    )
    hashes = np.ascontiguousarray(looks[:, :8]).view(np.uint64)[:, 0]
    colours = looks[:, 8:].astype(np.int16)
    pairs = [
        (one[alike], other[alike])
        for one, other in _neighbours(hashes)
        for alike in [_look_alike(hashes, colours, one, other)]
    ]
    ones, others = (np.concatenate([np.array([], int), *side]) for side in zip(*pairs, strict=True))
    links = coo_array((np.ones(len(ones), bool), (ones, others)), (len(looks), len(looks)))
    groups = connected_components(links, directed=False)[1][places.ravel()]
    _, firsts, groups = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[groups]


def _look_alike(hashes: np.ndarray, colours: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each pair is close in both, (pairs,)."""
    alike = np.bitwise_count(hashes[one] ^ hashes[other]) <= HASH_DISTANCE
    close = np.flatnonzero(alike)
    alike[close] = np.abs(colours[one[close]] - colours[other[close]]).max(axis=1) <= COLOUR_DISTANCE
    return alike


def _neighbours(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices, one and other, of hashes that are equal in one of five bands."""
    for band in np.array_split(np.arange(64, dtype=np.uint64), HASH_DISTANCE + 1):
        keys = (hashes >> band[0]) & np.uint64(2 ** len(band) - 1)
        order = np.lexsort((hashes, keys))
        keys = keys[order]
        starts = np.arange(len(keys))
        for step in range(1, NEIGHBOURS + 1):
            starts = starts[starts < len(keys) - step]
            starts = starts[keys[starts] == keys[starts + step]]
            yield order[starts], order[starts + step]
            if not len(starts):
                break


# reading


@contextmanager
def _read(source: str | Path | bytes) -> Iterator[IO[bytes]]:
    """The open file; what goes wrong while it is read is a BadPicture."""
    from PIL.Image import DecompressionBombError

    try:
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise BadPicture("no such file")
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            if not file.read(1):
                raise BadPicture("empty file")
            file.seek(0)
            yield file
    except BadPicture:
        raise
    except DecompressionBombError as error:  # Pillow's own limit, which says how many pixels there are
        raise _too_large(int(re.search(r"\d+", str(error)).group())) from error
    except BROKEN as error:
        raise BadPicture(_reason(error)) from error


def _reason(error: BaseException) -> str:
    from PIL import UnidentifiedImageError

    said = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, EOFError) or "truncated" in said.lower():
        return "truncated"
    return f"cannot be decoded: {said or type(error).__name__}"


def _too_large(pixels: int) -> BadPicture:
    return BadPicture(f"{pixels / 1e6:,.0f} million pixels, more than the {MAX_PIXELS / 1e6:.0f} million that are read")


def _open(file: IO[bytes]) -> Image:
    """The picture as its header describes it, not decoded yet."""
    from PIL import Image

    picture = Image.open(file, formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large(picture.width * picture.height)
    return picture


def _to_8_bits(picture: Image, mode: str) -> Image:
    from PIL import Image

    if picture.mode == "F":
        raise BadPicture("floating-point pixels, and nothing tells which of them is white")
    if picture.mode.startswith("I"):
        picture = _scale_16_bits(picture)
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode not in (mode, "1", "L"):
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _scale_16_bits(picture: Image) -> Image:
    """Grey of 0 to 65535, which Pillow also keeps in 32 bits, as grey of 0 to 255."""
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadPicture("32-bit pixels, and nothing tells which of them is white")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _orientation(picture: Image) -> int:
    """How a decoded picture lies, 1 (upright) to 8 as EXIF counts; Pillow itself turns a TIFF, and says 1 then."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except BROKEN:  # a picture is none the worse for a broken note beside it
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn_upright(picture: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    if orientation == 1:
        return picture
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    upright = picture.transpose(turns[orientation])
    upright.info = {}  # who reads the orientation from it must not turn it again
    return upright


def _mean_colours(picture: Image) -> bytes:
    from PIL.Image import Resampling

    return picture.resize((4, 4), Resampling.BOX).tobytes()

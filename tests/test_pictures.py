"""Are pictures read as people see them, and copies known by their looks?"""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftkit.pictures import BadPicture, group_alike, open_picture, perceptual_hash, survey

RED, WHITE = (255, 0, 0), (255, 255, 255)


def scene(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture with large and small shapes of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encode(picture: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def pixels(picture: Image.Image) -> list:
    return np.asarray(picture).tolist()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("PPM", {})],
)
def test_plain_pictures_are_those_of_pillow(tmp_path, kind, settings):
    path = tmp_path / "x.any"
    path.write_bytes(encode(scene(), kind, **settings))
    for source in (path, str(path), path.read_bytes()):
        picture = open_picture(source)
        assert picture.mode == "RGB"
        assert picture.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_grey_and_colour_become_what_is_asked_for():
    grey = scene().convert("L")
    assert pixels(open_picture(encode(grey))) == pixels(grey.convert("RGB"))
    assert pixels(open_picture(encode(grey), channels=1)) == pixels(grey)
    assert pixels(open_picture(encode(scene()), channels=1)) == pixels(grey)
    assert pixels(open_picture(encode(Image.new("1", (2, 1), 1)), channels=1)) == [[255, 255]]


def test_cmyk_becomes_rgb():
    picture = open_picture(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(picture, int) - RED).max() <= 3
    assert open_picture(encode(scene().convert("CMYK"), "JPEG"), channels=1).mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_is_scaled_and_not_clipped(kind, channels):
    values = np.array([[0, 128, 129, 257, 300, 32768, 65535]], np.uint16)
    picture = open_picture(encode(Image.fromarray(values), kind), channels)
    assert pixels(picture.convert("L")) == [[0, 0, 1, 1, 1, 128, 255]]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.fromarray(np.array([[0.0, 1.0]], np.float32)), "floating-point pixels"),
        (Image.fromarray(np.array([[0, 70_000]], np.int32)), "32-bit pixels"),
        (Image.fromarray(np.array([[-1, 7]], np.int32)), "32-bit pixels"),
    ],
)
def test_pixels_without_a_known_range_are_refused(picture, reason):
    with pytest.raises(BadPicture, match=reason):
        open_picture(encode(picture, "TIFF"))


def see_through(mode: str) -> bytes:
    """Two pixels, red (or black) and one that is not seen."""
    rgba = Image.new("RGBA", (2, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "LA":
        return encode(rgba.convert("LA"))
    if mode == "RGBA":
        return encode(rgba)
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    return encode(palette, mode, transparency=1)


@pytest.mark.parametrize(("mode", "first"), [("RGBA", RED), ("LA", (76, 76, 76)), ("PNG", RED), ("GIF", RED)])
def test_what_is_transparent_lies_on_white(mode, first):
    assert pixels(open_picture(see_through(mode))) == [[list(first), list(WHITE)]]
    assert pixels(open_picture(see_through(mode), channels=1)) == [[76, 255]]


def test_half_transparent_pixels_are_blended():
    assert pixels(open_picture(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 51))))) == [[[204, 204, 204]]]


def test_a_palette_without_transparency_keeps_its_colours():
    colours = Image.new("P", (2, 1))
    colours.putpalette([*RED, 0, 0, 255])
    colours.putpixel((1, 0), 1)
    assert pixels(open_picture(encode(colours))) == [[list(RED), [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    settings = {"lossless": True} if kind == "WEBP" else {}
    picture = open_picture(encode(frames[0], kind, save_all=True, append_images=frames[1:], **settings))
    assert pixels(picture) == pixels(frames[0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied_once(kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(scene(), kind, exif=exif)
    picture = open_picture(stored)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).convert("RGB")
    assert picture.size == ((64, 96) if orientation >= 5 else (96, 64))
    assert picture.tobytes() == expected.tobytes()
    assert ImageOps.exif_transpose(picture).tobytes() == expected.tobytes()
    seen = survey(stored)
    assert (seen.width, seen.height) == picture.size
    assert group([seen, survey(encode(expected))]) == [0, 0]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("broken", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_no_harm(broken):
    stored = encode(scene(), "JPEG", exif=broken)
    assert open_picture(stored).tobytes() == Image.open(io.BytesIO(stored)).convert("RGB").tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_one_pixel_is_wide_enough(size):
    stored = encode(scene(size=size))
    assert open_picture(stored).size == size
    assert (survey(stored).width, survey(stored).height) == size


PLAIN = encode(scene(size=(300, 200)), "JPEG")
BAD = {
    "empty": (b"", "empty file"),
    "text": (b"hello, I am no picture at all", "not an image"),
    "a page of a book": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "half a JPEG": (PLAIN[: len(PLAIN) // 2], "truncated"),
    "half a PNG": (encode(scene())[:1000], "truncated"),
    "half a GIF": (encode(scene(), "GIF")[:-600], "truncated"),
    "half a WebP": (encode(scene(), "WEBP")[:-100], None),  # its reason is in Pillow's words
}


@pytest.mark.parametrize("read", [open_picture, survey])
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_shortly(tmp_path, read, name):
    content, reason = BAD[name]
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(BadPicture) as error:
            read(source)
        assert str(error.value) == reason if reason else "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "x.jpg", tmp_path, tmp_path / "a\0b.jpg"):
        with pytest.raises(BadPicture, match=r"^(no such file|.*null.*)$"):
            open_picture(path)


def bomb(width: int, height: int) -> bytes:
    """A PNG of black pixels, one bit each, that nobody had to hold in memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(width // 8 + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("size", "millions"), [((20_000, 20_000), "400"), ((20_000, 8_000), "160")])
@pytest.mark.parametrize("read", [open_picture, survey])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(read, size, millions):
    stored = bomb(*size)
    started = time.perf_counter()
    with pytest.raises(BadPicture, match=f"^{millions} million pixels, more than the 100 million that are read$"):
        read(stored)
    assert time.perf_counter() - started < 0.5


# what pictures look like


def group(looks: list) -> list[int]:
    hashes = np.array([look.hash for look in looks], np.uint64)
    return group_alike(hashes, np.array([list(look.colours) for look in looks], np.uint8)).tolist()


def test_a_picture_that_was_compressed_or_resized_again_is_the_same_one():
    for seed in range(10):
        original = scene(seed, (640, 480))
        copies = [encode(original, "JPEG", quality=quality) for quality in (30, 60, 95)]
        copies += [encode(original.resize(size), "JPEG") for size in [(320, 240), (1000, 750), (128, 96)]]
        looks = [survey(copy) for copy in (encode(original), *copies)]
        assert group([*looks, survey(encode(scene(seed + 100)))]) == [0] * len(looks) + [1]


def test_the_hash_is_that_of_zauner():
    from scipy.fft import dct

    picture = scene(3, (32, 32)).convert("L")
    table = dct(np.eye(32), axis=0, norm="ortho")
    low = (table @ np.asarray(picture, float) @ table.T)[1:9, 1:9].ravel()
    bits = "".join("01"[int(value > np.median(low))] for value in low)
    assert perceptual_hash(picture) == int(bits, 2)
    assert bits.count("1") == 32


def test_plain_surfaces_are_told_apart_by_their_colour():
    colours = [(255, 0, 0), (0, 0, 255), (0, 200, 0), (90, 90, 90), (250, 0, 0)]
    looks = [survey(encode(Image.new("RGB", (40, 40), colour))) for colour in colours]
    assert {look.hash for look in looks} == {0}
    assert group(looks) == [0, 1, 2, 3, 0]


def test_groups_are_those_of_comparing_every_pair():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, np.uint64)
    for copy in range(150, 300):  # up to 6 bits from another: some within reach and some not
        flips = rng.choice(64, rng.integers(0, 7), replace=False).astype(np.uint64)
        hashes[copy] = hashes[copy - 150] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    groups = group_alike(hashes, np.zeros((300, 48), np.uint8))
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 4
    assert ((groups[:, None] == groups) == near).all()  # random hashes are far apart: no chains
    assert 0 < near.sum() - 300 < 300
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
    assert group_alike(np.array([], np.uint64), np.zeros((0, 48), np.uint8)).tolist() == []


def test_many_hashes_are_grouped_quickly():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, np.uint64)
    hashes[60_000:] = hashes[:40_000] ^ np.uint64(0b1001)
    hashes[:1_000] = hashes[60_000:61_000] = 0  # plain surfaces, each of its own colours
    colours = rng.integers(0, 256, (100_000, 48), np.uint8)
    colours[61_000:] = colours[1_000:40_000]
    started = time.perf_counter()
    groups = group_alike(hashes, colours)
    assert time.perf_counter() - started < 30
    assert len(set(groups.tolist())) == 61_000


def test_the_suffixes_are_those_of_the_formats():
    from graftkit.pictures import FORMATS, SUFFIXES

    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in SUFFIXES} == set(FORMATS)
    assert all(Path(f"x{suffix}").suffix == suffix for suffix in SUFFIXES)

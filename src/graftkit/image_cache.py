"""Which pictures need not be decoded again?

The pixels of all rows lie in one file: see `row_file`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit import row_file
from graftkit.errors import UserError
from graftkit.images import ImageConfig, Preprocessing, read, reading_processes
from graftkit.machine import cache_folder, cores
from graftkit.task import Row

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from graftkit.data import Splits
    from graftkit.run import Run

FORMAT = 1  # to be raised where the code that makes the pixels changes
CHUNK = 256  # rows that are in memory at a time while the file is made


@dataclass(frozen=True, eq=False)
class PictureCache:
    """Pictures of rows in a memory-mapped file; forked and spawned workers may read it at the same time."""

    path: Path
    index: np.ndarray  # (rows, 3) int64: first byte, height, width
    preprocessing: Preprocessing
    final: bool  # pictures as evaluation sees them; otherwise only made smaller, and crops come from them
    note: str  # a sentence for the log

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bytes"}  # pickled, it would be copied

    def __len__(self) -> int:
        return len(self.index)

    def pixels(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        """What the model sees of a row, (channels, height, width) uint8: augmented, where there is an `rng`.

        A cache for training that is not `final` needs one.
        """
        import torch

        if not self.final:
            return self.preprocessing.augment(self.picture(index), rng)
        pixels = torch.from_numpy(self._array(index).copy()).permute(2, 0, 1)
        return pixels if rng is None else self.preprocessing.erase(pixels, rng)

    def picture(self, index: int) -> Image:
        """A row's picture as it is kept."""
        from PIL import Image

        array = self._array(index)
        return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, dtype=np.uint8, mode="r")

    def _array(self, index: int) -> np.ndarray:  # (height, width, channels)
        start, height, width = self.index[index].tolist()
        shape = (height, width, self.preprocessing.channels)
        return self._bytes[start : start + height * width * shape[-1]].reshape(shape)


def prepare_pictures(
    run: Run, preprocessing: Preprocessing, splits: Splits
) -> tuple[int, list[tuple[Sequence[Row], PictureCache]]]:
    """How many workers read pictures, and the caches of the splits that are read more than once, if asked for.

    Says and records how pictures are read.
    """
    config = preprocessing.config
    workers = reading_processes(config, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # processes on this machine
    how = preprocessing.timm_settings() | {"augment": _augmentation(config), "workers": workers, "cache": config.cache}
    run.record["images"] = how | {"size": list(preprocessing.size)}
    height, width = preprocessing.size
    run.say(
        f"pictures: {height} x {width} pixels, {preprocessing.interpolation}; in training {_augmentation(config)}; "
        f"read by {'this process' if workers == 0 else f'{workers} more' if workers > 1 else 'one more process'}"
    )
    cached = []
    for split in ("train", "dev") if config.cache else ():
        rows = getattr(splits, split)
        run.once(partial(_make, rows, preprocessing, split == "train"))  # then the others find it
        cache = open_cache(rows, preprocessing, training=split == "train")
        run.say(f"{split}: {cache.note}")
        cached.append((rows, cache))
    return workers, cached


def _augmentation(config: ImageConfig) -> str:
    """What training does to pictures, in words."""
    crop = f", crops of {config.crop:.0%} and more{', mirrored' if config.flip is not False else ''}"
    more = [f"{name} {value:g}" for name in ("erase", "mixup", "cutmix") if (value := getattr(config, name))]
    return ", ".join([config.augment + (crop if config.augment != "none" else ""), *more])


def _make(rows: Sequence[Row], preprocessing: Preprocessing, training: bool) -> None:
    open_cache(rows, preprocessing, training=training)


def open_cache(rows: Sequence[Row], preprocessing: Preprocessing, *, training: bool) -> PictureCache:
    """The cache of these rows' pictures, made by decoding them all where there is none yet.

    For evaluation, and for training with `augment: none`, it holds exactly what `evaluate` makes of them; for other
    training pictures with a short side of `cache_side` or less. UserError where those are smaller than what the model
    sees, a picture cannot be read, or the cache folder cannot be written.
    """
    config = preprocessing.config
    final = not training or config.augment == "none"
    seen = min(preprocessing.size)
    if not final and config.cache_side < seen:
        cure = f"set --image.cache_side {round(seen * 8 / 7)} or so"
        raise UserError(f"--image.cache_side {config.cache_side} is less than the {seen} pixels the model sees; {cure}")
    key = _key(rows, preprocessing, final)
    path = cache_folder() / "pictures" / f"{key}.pixels"
    index, how = row_file.read_index(path, key), "found"
    if index is None:
        began = time.monotonic()
        prepare = partial(_prepare, preprocessing=preprocessing, final=final)
        _write(path, key, rows, prepare)
        index, how = row_file.read_index(path, key), f"made in {time.monotonic() - began:.0f} s"
    smaller = f"made smaller to a short side of {config.cache_side}; crops come from these"
    kept = "as evaluation sees them" if final else smaller
    note = f"cache of {len(rows)} pictures, {kept}: {path.stat().st_size / 2**30:.2f} GiB in {path}, {how}"
    return PictureCache(path, index, preprocessing, final, note)


def shrink(picture: Image, side: int) -> Image:
    """The picture with a short side of `side` in its own aspect ratio; a smaller one stays as it is."""
    from PIL.Image import Resampling

    short = min(picture.size)
    if short <= side:
        return picture
    width, height = (max(side, round(length * side / short)) for length in picture.size)
    return picture.resize((width, height), Resampling.BICUBIC)


def _key(rows: Sequence[Row], preprocessing: Preprocessing, final: bool) -> str:
    """What the pixels follow from, as a name: the contents of all rows in order, the geometry, and who computes it."""
    contents = rows.select_columns("sha256") if hasattr(rows, "select_columns") else rows  # a Dataset also holds bytes
    processor = preprocessing.processor
    how = preprocessing.timm_settings() if processor is None else processor.to_dict()
    facts = {
        "format": FORMAT,
        "rows": hashlib.sha256("\n".join(row["sha256"] for row in contents).encode()).hexdigest(),
        "channels": preprocessing.channels,
        "geometry": how if final else {"short side": preprocessing.config.cache_side},
        "versions": [version(name) for name in ("pillow", "torchvision", "timm", "transformers")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _prepare(row: Row, preprocessing: Preprocessing, final: bool) -> np.ndarray:
    """The pixels of a row that are kept, (height, width, channels) uint8."""
    picture = read(row, preprocessing.channels)
    if final:
        return np.ascontiguousarray(preprocessing.evaluate(picture).permute(1, 2, 0).numpy())
    array = np.asarray(shrink(picture, preprocessing.config.cache_side))
    return array.reshape(*array.shape[:2], preprocessing.channels)


def _write(path: Path, key: str, rows: Sequence[Row], prepare: Callable[[Row], np.ndarray]) -> None:
    """Make the file. UserError where the cache folder cannot be written."""
    try:
        part = row_file.begin(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        cure = "set GRAFTKIT_CACHE to another folder, or --image.cache false"
        raise UserError(
            f"--image.cache cannot write to {path.parent}: {error.strerror}; {cure}", everywhere=True
        ) from error
    try:
        row_file.seal(part, path, key, _fill(part, rows, prepare))
    finally:
        part.unlink(missing_ok=True)


def _fill(part: Path, rows: Sequence[Row], prepare: Callable[[Row], np.ndarray]) -> np.ndarray:
    """Write the pixels of all rows; returns their index. Threads make them, since decoding frees the GIL."""
    from concurrent.futures import ThreadPoolExecutor

    index = []
    with part.open("wb") as file, ThreadPoolExecutor(cores()) as pool:
        file.write(bytes(row_file.HEADER))
        for first in range(0, len(rows), CHUNK):
            chunk = [rows[i] for i in range(first, min(first + CHUNK, len(rows)))]
            for array in pool.map(prepare, chunk):
                index.append((file.tell(), *array.shape[:2]))
                file.write(array.data)
    return np.array(index, dtype=np.int64).reshape(-1, 3)

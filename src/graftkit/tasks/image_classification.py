"""Which of these labels does a picture have?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit import image_backbone
from graftkit.baselines import picture_baselines
from graftkit.images import mix, read
from graftkit.losses import PLAIN, CrossEntropy
from graftkit.metrics import classification
from graftkit.pictures import picture_measures
from graftkit.records import label_records
from graftkit.task import Baseline, Batch, Kept, Record, Row

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor, nn

    from graftkit.image_cache import PictureCache
    from graftkit.images import Preprocessing

THUMBNAIL = 112  # pixels of the short side, in the run's table of rows

SNIPPET = """\
from transformers import pipeline

classify = pipeline("image-classification", {folder!r})
print(classify(["a picture.jpg"], top_k=None))"""


GREY_SNIPPET = """\
import timm
from PIL import Image

model = timm.create_model({name!r}, pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
picture = prepare(Image.open("a picture.jpg").convert("L"))  # a pipeline would read three channels
chances = model(picture[None]).softmax(-1)[0].tolist()
print(dict(zip(model.pretrained_cfg["label_names"], chances)))"""


class ImageClassification:
    """One label per picture: cross-entropy over the logits of a network for pictures.

    `train_rows` are those that mixup and cutmix draw a row's partner from; `cached` are pairs of rows and the cache of
    their pictures. `criterion` says what an answer costs in training; records and scores have the plain cross-entropy.
    """

    name = "image-classification"
    headline = "macro_f1"
    headlines = tuple(classification.HEADLINES)
    lower = frozenset({"log_loss"})
    calibrates = True
    decides = False

    @property
    def varies(self) -> bool:
        """Whether a training picture looks otherwise in each epoch."""
        config = self.preprocessing.config
        return config.augment != "none" or config.erase > 0 or config.mixes

    def __init__(
        self,
        preprocessing: Preprocessing,
        labels: list[str],
        train_rows: Sequence[Row],
        workers: int,
        cached: Sequence[tuple[Sequence[Row], PictureCache]] = (),
        criterion: CrossEntropy = PLAIN,
    ):
        self.preprocessing = preprocessing
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}
        self.train_rows = train_rows
        self.workers = workers
        self.criterion = criterion
        self.cached = {id: (cache, place) for rows, cache in cached for place, id in enumerate(rows["id"])}

    def lengths(self, rows: Sequence[Row]) -> None:
        """All pictures cost the same."""

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """Pixels (channels, height, width) uint8, and the label's index; with a partner, a soft target (labels,)."""
        label = self.index[row["label"]]
        if rng is None:
            return {"id": row["id"], "pixels": self._pixels(row, None), "target": label}
        pixels, config = self._pixels(row, rng), self.preprocessing.config
        if not config.mixes:
            return {"id": row["id"], "pixels": pixels, "target": label}
        partner = self.train_rows[int(rng.integers(len(self.train_rows)))]
        theirs, other = self._pixels(partner, rng), self.index[partner["label"]]
        pixels, target = mix(pixels, label, theirs, other, len(self.labels), rng, config)
        return {"id": row["id"], "pixels": pixels, "target": target}

    def stand_in(self, row: Row, tokens: int) -> dict[str, Any]:
        """What `encode` gives, of a picture of one pixel."""
        import torch

        pixels = torch.zeros((self.preprocessing.channels, 1, 1), dtype=torch.uint8)
        return {"id": row["id"], "pixels": pixels, "target": self.index[row["label"]]}

    def encoding(self) -> dict[str, Any]:
        """What is done to pictures."""
        return self.preprocessing.facts()

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Pixels (rows, channels, height, width) uint8; targets (rows,) int64, or (rows, labels) float32 if mixed."""
        import torch

        pixels = torch.stack([example["pixels"].permute(1, 2, 0) for example in examples])  # channels-last in memory
        targets = [example["target"] for example in examples]
        stacked = torch.tensor(targets) if isinstance(targets[0], int) else torch.stack(targets)
        ids = [example["id"] for example in examples]
        return Batch(ids, {"pixels": pixels.permute(0, 3, 1, 2)}, {"targets": stacked})

    def count(self, batch: Batch) -> Tensor:
        """Rows, each with its weight."""
        return self.criterion.count(batch.targets["targets"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the answers cost, summed over the rows."""
        logits = self.logits(model, batch).float()
        return self.criterion(logits, batch.targets["targets"], batch.targets.get("teacher"))

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The likeliest label of each row, with its logits and probabilities, (labels,) float32, and its loss."""
        return label_records(batch.ids, self.logits(model, batch), batch.targets["targets"], self.labels)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says of a batch of pixels, (rows, labels)."""
        pixels = self.preprocessing.normalise(batch.inputs["pixels"])
        return model(pixels) if self._timm else model(pixel_values=pixels).logits

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.classification`."""
        return classification.scores(*classification.arrays(records, self.labels))

    def digest(self, row: Row) -> str:
        """Of the file's bytes."""
        return row["sha256"]

    def overlong(self, rows: Sequence[Row]) -> None:
        """No picture is too large to be read."""

    def kept(self, row: Row) -> Kept:
        """Where the picture lies, and a small JPEG of it; its size, brightness, contrast and sharpness."""
        picture = read(row)
        scale = THUMBNAIL / min(picture.size)
        size = [max(1, min(4 * THUMBNAIL, round(side * scale))) for side in picture.size]
        file = io.BytesIO()
        picture.resize(size).save(file, "JPEG", quality=80)
        return Kept({"path": row["path"], "thumbnail": file.getvalue()}, picture_measures(picture))

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The most frequent class, and a vote of the pictures of the most similar colours."""
        return picture_baselines(self.labels, train, dev, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of timm, or of transformers."""
        if self._timm:
            image_backbone.save_timm(folder, model, self.labels, self.preprocessing)
        else:
            image_backbone.save_transformers(folder, model, self.preprocessing)

    def load(self, folder: Path) -> nn.Module:
        """Through timm, or transformers."""
        return (image_backbone.load_timm if self._timm else image_backbone.load_transformers)(folder)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """A pipeline of transformers, which takes timm's folders too; timm itself where pictures are grey."""
        if self.preprocessing.channels == 3:
            return SNIPPET.format(folder=hub_id or str(folder))
        return GREY_SNIPPET.format(name=f"hf-hub:{hub_id}" if hub_id else f"local-dir:{folder}")

    @property
    def _timm(self) -> bool:
        return self.preprocessing.processor is None

    def _pixels(self, row: Row, rng: np.random.Generator | None) -> Tensor:
        """(channels, height, width) uint8, augmented where there is an `rng`."""
        cache, place = self.cached.get(row["id"], (None, 0))
        if cache is not None and (cache.final or rng is not None):
            return cache.pixels(place, rng)
        picture = read(row, self.preprocessing.channels)
        return self.preprocessing.evaluate(picture) if rng is None else self.preprocessing.augment(picture, rng)

"""How do pixels become numbers?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from graftkit.config import AtLeastOne, Fraction, NotNegative, NotNegativeInt
from graftkit.errors import UserError
from graftkit.machine import cores
from graftkit.task import Row

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor

FEW_CORES = 4  # on fewer, workers and the network would take turns: on 2, both training and evaluation are slower so
MOST_WORKERS = 8  # more seldom help one GPU, and each holds its own copy of the libraries


@dataclass(frozen=True)
class ImageConfig:
    """How pictures are read and augmented."""

    size: AtLeastOne | None = None
    """height and width in pixels that the model sees; by default the checkpoint's own"""
    augment: Literal["none", "crop", "trivial", "rand"] = "crop"
    """what training does to pictures: nothing more than evaluation, a random resized crop and flip, or these and
    TrivialAugment or RandAugment"""
    crop: Fraction = 0.35
    """smallest share of a picture's area that a random crop keeps"""
    flip: bool | None = None
    """whether augmenting mirrors every second picture; by default it does, but not the digits of the demo"""
    erase: Fraction = 0.0
    """share of the training pictures in which a random rectangle becomes the mean colour"""
    mixup: NotNegative = 0.0
    """blend training pictures with others: alpha of the Beta distribution, such as 0.2; 0 is off"""
    cutmix: NotNegative = 0.0
    """paste a part of another training picture: alpha, such as 1; 0 is off; beside mixup each row draws one"""
    workers: NotNegativeInt | None = None
    """processes that read pictures; by default as many as cores but one, at most 8, and none on fewer than 4 cores"""
    cache: bool = False
    """keep resized pictures in a file in the cache folder, so that later epochs and runs do not decode"""
    cache_side: AtLeastOne = 256
    """short side in pixels of training pictures in the cache, from which crops come; none is enlarged"""

    def __post_init__(self) -> None:
        for name in ("crop", "flip"):
            if self.augment == "none" and getattr(self, name) != getattr(ImageConfig, name):
                raise UserError(f"--image.{name} does nothing with --image.augment none; leave one of them out")
        if not self.cache and self.cache_side != ImageConfig.cache_side:
            raise UserError("--image.cache_side does nothing without --image.cache; set both, or neither")

    @property
    def mixes(self) -> bool:
        """Whether a training row needs a partner."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the model's pixels, the checkpoint's own way but for what the user overrode.

    Pixels stay uint8 until `normalise`, so that a batch is small on its way from the workers to the device.
    """

    channels: int  # 3, or 1 for grey
    size: tuple[int, int]  # height, width
    mean: tuple[float, ...]  # of each channel, for pixels from 0 to 1
    std: tuple[float, ...]
    interpolation: str  # bilinear, bicubic ...
    config: ImageConfig
    crop_pct: float | None = None  # of a timm checkpoint
    crop_mode: str | None = None
    processor: Any = None  # the image processor of a transformers checkpoint
    blue_first: bool = False  # it turns red, green, blue round

    @classmethod
    def for_timm(cls, model: Any, config: ImageConfig, channels: int | None = None) -> Preprocessing:
        """That of a timm model or of a `pretrained_cfg`; by default with as many channels as the model reads."""
        from timm.data import resolve_data_config

        channels = _channels_of(model) if channels is None else channels
        size = None if config.size is None else (channels, config.size, config.size)
        given = {"pretrained_cfg": model} if isinstance(model, Mapping) else {"model": model}
        facts = resolve_data_config({"input_size": size}, **given)
        return cls(
            channels,
            tuple(facts["input_size"][-2:]),
            _per_channel(facts["mean"], channels),
            _per_channel(facts["std"], channels),
            facts["interpolation"],
            config,
            facts["crop_pct"],
            facts["crop_mode"],
        )

    @classmethod
    def for_transformers(cls, processor: Any, config: ImageConfig, channels: int = 3) -> Preprocessing:
        """That of an image processor: size, mean and std are measured, since processors state them in many ways.

        UserError where its pictures differ in size, or it does more than resize, crop and normalise.
        """
        import numpy as np
        from PIL import Image

        if config.size is not None:
            processor = _resized(processor, config.size)
        black, white = (_process(processor, Image.new("RGB", (300, 300), (grey,) * 3)) for grey in (0, 255))
        colour = _process(processor, Image.new("RGB", (300, 300), (10, 20, 30)), raw=True)
        height, width = black.shape[-2:]
        low, high, reds = (pixels[:, height // 2, width // 2].double() for pixels in (black, white, colour))  # (3,)
        mean, std = ([float(f"{value:.6g}") for value in values] for values in (low / (low - high), 1 / (high - low)))
        how = Image.Resampling.BILINEAR if processor.resample is None else processor.resample
        made = cls(
            3,
            (height, width),
            tuple(mean),
            tuple(std),
            Image.Resampling(how).name.lower(),
            config,
            processor=processor,
            blue_first=reds.tolist() == [30, 20, 10],
        )
        _check_repeats(made, Image.fromarray(np.random.default_rng(0).integers(0, 256, (157, 301, 3), dtype=np.uint8)))
        return replace(made, channels=channels, mean=_per_channel(mean, channels), std=_per_channel(std, channels))

    def evaluate(self, picture: Image) -> Tensor:
        """What evaluation sees: (channels, height, width) uint8."""
        picture = middle(picture, min(self.size))
        if self.processor is None:
            return self._timm_transform(picture)
        return _process(self.processor, picture, raw=True)[: self.channels]

    def augment(self, picture: Image, rng: np.random.Generator) -> Tensor:
        """What training sees: (channels, height, width) uint8, by chance from `rng` alone."""
        if self.config.augment == "none":
            return self.erase(self.evaluate(picture), rng)
        with _torch_draws_from(rng):
            pixels = self._random_transform(picture)
        return self.erase(pixels.flip(0) if self.blue_first else pixels, rng)

    def erase(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """The pixels, in some of them a random rectangle in the mean colour (Zhong et al. 2020)."""
        if self.config.erase == 0:
            return pixels
        with _torch_draws_from(rng):
            return self._random_erasing(pixels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(rows, channels, height, width) uint8 as float32 on its device, as torchvision's ToTensor and Normalize."""
        full, mean, std = _constants(self.mean, self.std, pixels.device)
        return pixels.float().div_(full).sub_(mean).div_(std)

    def timm_settings(self) -> dict[str, Any]:
        """What a timm folder must say of pictures in its `pretrained_cfg`."""
        return {
            "input_size": [self.channels, *self.size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def facts(self) -> dict[str, Any]:
        """All that the pixels that evaluation sees follow from, besides the picture: plain JSON."""
        how = None if self.processor is None else self.processor.to_dict()
        return self.timm_settings() | {"processor": how, "blue_first": self.blue_first}

    def random_facts(self) -> dict[str, Any]:
        """All that the pixels that training sees follow from besides these and the chance: plain JSON."""
        config = asdict(self.config)
        side = config["cache_side"] if self.config.cache else None  # of what crops come from
        return {name: config[name] for name in ("augment", "crop", "flip", "erase", "mixup", "cutmix")} | {"side": side}

    @property
    def _mean_colour(self) -> list[int]:
        return [min(255, max(0, round(255 * value))) for value in self.mean]

    @cached_property
    def _timm_transform(self) -> Any:
        from timm.data import create_transform

        facts = self.timm_settings() | {"input_size": (self.channels, *self.size)}
        return create_transform(**facts, is_training=False, use_prefetcher=True)

    @cached_property
    def _random_transform(self) -> Any:
        from torchvision import transforms as t

        how = t.InterpolationMode(self.interpolation)
        policies = {"trivial": t.TrivialAugmentWide, "rand": t.RandAugment}
        steps = [t.RandomResizedCrop(self.size, scale=(self.config.crop, 1), interpolation=how)]
        if self.config.flip is not False:
            steps.append(t.RandomHorizontalFlip())
        if self.config.augment in policies:
            steps.append(policies[self.config.augment](fill=self._mean_colour))
        return t.Compose([*steps, t.PILToTensor()])

    @cached_property
    def _random_erasing(self) -> Any:
        from torchvision.transforms import RandomErasing

        return RandomErasing(self.config.erase, value=self._mean_colour)


def read(row: Row, channels: int = 3) -> Image:
    """The picture of a row, from its bytes or else its path. UserError that names it, where there is none."""
    from graftkit.pictures import BadPicture, open_picture

    try:
        return open_picture(row["path"] if row["bytes"] is None else row["bytes"], channels)
    except BadPicture as error:
        raise UserError(f"{row['path'] or row['id']}: {error}; mend or remove it", everywhere=True) from error


def mix(
    pixels: Tensor,
    label_index: int,
    partner_pixels: Tensor,
    partner_index: int,
    classes: int,
    rng: np.random.Generator,
    config: ImageConfig,
) -> tuple[Tensor, Tensor]:
    """A training row mixed with its partner, where `config.mixes`: pixels like `pixels`, target (classes,) float32.

    Mixup (Zhang et al. 2018) blends them; CutMix (Yun et al. 2019) pastes a rectangle, and the target follows the
    area that it covers.
    """
    import torch

    ways = [(way, alpha) for way, alpha in ((_blend, config.mixup), (_paste, config.cutmix)) if alpha > 0]
    way, alpha = ways[rng.integers(len(ways))]
    mixed, share = way(pixels, partner_pixels, rng.beta(alpha, alpha), rng)
    target = torch.zeros(classes)
    target[label_index] += share
    target[partner_index] += 1 - share
    return mixed, target


def reading_processes(config: ImageConfig, processes: int = 1) -> int:
    """How many workers read pictures for each of the training processes on this machine."""
    if config.workers is not None:
        return config.workers
    mine = cores() // processes
    return 0 if mine < FEW_CORES else min(MOST_WORKERS, mine - 1)


def _blend(pixels: Tensor, partner: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    return (share * pixels.float() + (1 - share) * partner.float()).round().to(pixels.dtype), share


def _paste(pixels: Tensor, partner: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A rectangle of the partner over 1 - share of the area; less, where it reaches over the border."""
    spans = []
    for length in pixels.shape[-2:]:
        cut, centre = int(length * (1 - share) ** 0.5), int(rng.integers(length))
        spans.append(slice(max(0, centre - cut // 2), min(length, centre + cut // 2)))
    rows, columns = spans
    mixed = pixels.clone()
    mixed[:, rows, columns] = partner[:, rows, columns]
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - covered / (pixels.shape[-2] * pixels.shape[-1])


@contextmanager
def _torch_draws_from(rng: np.random.Generator) -> Iterator[None]:
    """Inside, torch's chance on the CPU follows from `rng`; outside it goes on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed the GPUs too
        yield


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255 (as a tensor: a GPU would multiply by the rounded inverse of a number), mean and std, ready to broadcast."""
    import torch

    as_column = [torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)]
    return torch.tensor(255.0, device=device).view(1, 1, 1), *as_column


def _channels_of(model: Any) -> int:
    """The channels that a timm model, or one of this `pretrained_cfg`, reads.

    Its first convolution knows, since the `pretrained_cfg` still says 3 after `create_model(in_chans=1)`.
    """
    from torch.nn import Conv2d

    if isinstance(model, Mapping):
        return model["input_size"][0]
    first = next((layer for layer in model.modules() if isinstance(layer, Conv2d)), None)
    known = first is not None and first.in_channels in (1, 3)
    return first.in_channels if known else model.pretrained_cfg["input_size"][0]


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value per channel; their average where the checkpoint has another number of channels."""
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def middle(picture: Image, most: int) -> Image:
    """The picture, of one more than `most` times as long as wide the middle: a transform would make gigabytes of a
    line of pixels, or nothing."""
    longest = most * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    left, top = (max(0, length - longest) // 2 for length in picture.size)
    return picture.crop((left, top, left + min(longest, picture.width), top + min(longest, picture.height)))


def _process(processor: Any, picture: Image, raw: bool = False) -> Tensor:
    """What an image processor makes of a picture: (3, height, width), raw ones before they become numbers."""
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    how = {"do_rescale": False, "do_normalize": False} if raw else {}
    if raw and hasattr(processor, "include_top"):
        how["include_top"] = False  # EfficientNet's: another division by std
    return processor(images=rgb, return_tensors="pt", **how)["pixel_values"][0]


def _resized(processor: Any, side: int) -> Any:
    """A copy of an image processor that ends at another size; a size before a crop grows with it."""
    from copy import deepcopy

    processor = deepcopy(processor)
    size, crop = dict(processor.size), processor.crop_size if getattr(processor, "do_center_crop", False) else None
    scale = 1.0
    if crop is not None:
        scale = side / dict(crop)["height"]
        processor.crop_size = {"height": side, "width": side}
    processor.size = {name: side if crop is None else round(value * scale) for name, value in size.items() if value}
    return processor


def _check_repeats(preprocessing: Preprocessing, picture: Image) -> None:
    """UserError where `normalise(evaluate(picture))` is not what the processor makes of a wide picture."""
    import torch

    name = type(preprocessing.processor).__name__
    pixels, wanted = preprocessing.evaluate(picture), _process(preprocessing.processor, picture)
    if tuple(pixels.shape[-2:]) != preprocessing.size:
        raise UserError(f"{name} makes pictures of many sizes, which do not fit one batch; use another checkpoint")
    made = preprocessing.normalise(pixels[None])[0]
    scale = max(1.0, float(wanted.abs().max()))
    if pixels.dtype != torch.uint8 or not torch.allclose(made, wanted, rtol=0, atol=1e-5 * scale):
        raise UserError(f"{name} does more than resize, crop and normalise; use another checkpoint")

from __future__ import annotations

import io
import os
import pickle
import random
import signal
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from graftkit import image_cache
from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.image_cache import open_cache, shrink
from graftkit.images import ImageConfig, Preprocessing, mix, read, reading_processes

SHAPES = [(100, 60), (61, 103), (64, 64), (300, 40), (3, 60), (7, 9)]  # width, height
CFG = {
    "input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def draw(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of coarse and fine noise: every pixel differs from its neighbours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height))
    fine = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.3).convert(mode)


def row(picture: Image.Image, name: str = "x") -> dict:
    """A row that holds a picture as a PNG file's bytes."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    content = stream.getvalue()
    return {"id": name, "path": None, "bytes": content, "sha256": sha256(content).hexdigest(), "label": "a"}


def preprocessing(channels: int = 3, **config) -> Preprocessing:
    return Preprocessing.for_timm(CFG, ImageConfig(**config), channels)


# --- the checkpoint's own pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("crop_pct", "size"), [(0.875, (32, 32)), (0.95, (24, 40)), (1.0, (31, 31))])
def test_evaluation_is_timms_to_the_last_bit(interpolation, crop_mode, crop_pct, size):
    from timm.data import create_transform, resolve_data_config

    own = {"interpolation": interpolation, "crop_mode": crop_mode, "crop_pct": crop_pct, "input_size": (3, *size)}
    made = Preprocessing.for_timm(CFG | own, ImageConfig())
    whole = create_transform(**resolve_data_config(CFG | own), is_training=False)
    assert made.size == size
    for shape in SHAPES:
        pixels = made.evaluate(draw(*shape))
        assert pixels.dtype == torch.uint8
        assert torch.equal(made.normalise(pixels[None])[0], whole(draw(*shape)))


def test_a_timm_model_brings_its_own_and_the_user_overrides_the_size():
    import timm

    model = timm.create_model("test_vit.r160_in1k", pretrained=False)
    made, larger = Preprocessing.for_timm(model, ImageConfig()), Preprocessing.for_timm(model, ImageConfig(size=48))
    assert made.size == tuple(model.pretrained_cfg["input_size"][1:])
    assert made.mean == tuple(model.pretrained_cfg["mean"])
    assert larger.evaluate(draw(90, 70)).shape == (3, 48, 48)
    again = Preprocessing.for_timm(larger.timm_settings(), ImageConfig())  # what is saved says the same
    assert torch.equal(again.evaluate(draw(90, 70)), larger.evaluate(draw(90, 70)))
    assert (again.mean, again.std, again.size) == (larger.mean, larger.std, larger.size)


def processor(kind: str):
    import transformers as t

    makers = {
        "vit": lambda: t.ViTImageProcessor(size={"height": 32, "width": 32}),
        "swin": lambda: t.ViTImageProcessor(
            size={"height": 40, "width": 40}, resample=3, image_mean=CFG["mean"], image_std=CFG["std"]
        ),
        "convnext": lambda: t.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
        "convnext-384": lambda: t.ConvNextImageProcessor(size={"shortest_edge": 384}),
        "clip": lambda: t.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        "efficientnet": lambda: t.EfficientNetImageProcessor(size={"height": 32, "width": 32}),
        "mobilevit": lambda: t.MobileViTImageProcessor(
            size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
        ),
        "not normalised": lambda: t.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
        "any size": lambda: t.ViTImageProcessor(size={"shortest_edge": 32}),
    }
    return makers[kind]()


@pytest.mark.parametrize(
    "kind", ["vit", "swin", "convnext", "convnext-384", "clip", "efficientnet", "mobilevit", "not normalised"]
)
def test_evaluation_is_the_image_processors(kind):
    whole = processor(kind)
    made = Preprocessing.for_transformers(whole, ImageConfig())
    for shape in SHAPES:
        pixels = made.evaluate(draw(*shape))
        wanted = whole(images=draw(*shape), return_tensors="pt")["pixel_values"]
        assert pixels.dtype == torch.uint8
        torch.testing.assert_close(made.normalise(pixels[None]), wanted, rtol=0, atol=1e-5)
    assert made.augment(draw(50, 70), np.random.default_rng(0)).shape == pixels.shape


def test_training_sees_the_colours_in_the_order_of_evaluation():
    for kind in ("vit", "mobilevit"):
        made = Preprocessing.for_transformers(processor(kind), ImageConfig())
        red = Image.new("RGB", (40, 40), (200, 100, 0))
        assert torch.equal(made.augment(red, np.random.default_rng(0)), made.evaluate(red))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (2, 50), (1, 1)])
def test_a_line_of_pixels_is_read_without_gigabytes(shape, crop_mode):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for made in (
        Preprocessing.for_timm(CFG | {"crop_mode": crop_mode}, ImageConfig()),
        Preprocessing.for_transformers(processor("clip"), ImageConfig()),
    ):
        assert made.evaluate(draw(*shape)).shape == (3, 32, 32)
        assert made.augment(draw(*shape), np.random.default_rng(0)).shape == (3, 32, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize(("kind", "size"), [("vit", (48, 48)), ("convnext", (48, 48)), ("clip", (48, 48))])
def test_an_image_processor_takes_another_size(kind, size, tmp_path):
    from transformers import AutoImageProcessor

    original = processor(kind)
    made = Preprocessing.for_transformers(original, ImageConfig(size=48))
    assert made.size == size
    assert original.to_dict() == processor(kind).to_dict()
    made.processor.save_pretrained(tmp_path)  # what is saved says the same
    saved = AutoImageProcessor.from_pretrained(tmp_path)(images=draw(90, 70), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made.normalise(made.evaluate(draw(90, 70))[None]), saved, rtol=0, atol=1e-5)
    if kind == "clip":
        assert dict(made.processor.size)["shortest_edge"] == 60  # 40 x 48 / 32: as much is cut off as before


def test_an_image_processor_that_keeps_many_sizes_is_refused():
    with pytest.raises(UserError, match="many sizes"):
        Preprocessing.for_transformers(processor("any size"), ImageConfig())


def test_an_image_processor_that_does_more_is_refused():
    class Inverts(type(processor("vit"))):
        def rescale_and_normalize(self, images, *args, **kwargs):
            return super().rescale_and_normalize(images, *args, **kwargs) ** 2

    with pytest.raises(UserError, match="Inverts does more than"):
        Preprocessing.for_transformers(Inverts(size={"height": 32, "width": 32}), ImageConfig())


@pytest.mark.parametrize("crop_mode", ["center", "border"])
@pytest.mark.parametrize("augment", ["none", "crop", "trivial", "rand"])
def test_grey_pictures_have_the_mean_of_three_channels(crop_mode, augment):
    config = ImageConfig(augment=augment, erase=1.0)
    for made in (
        Preprocessing.for_timm(CFG | {"crop_mode": crop_mode}, config, 1),
        Preprocessing.for_transformers(processor("swin"), config, 1),
    ):
        assert made.mean == pytest.approx((0.449,))
        assert made.std == pytest.approx((0.226,))
        picture = draw(60, 40, mode="L")
        assert made.evaluate(picture).shape == (1, *made.size)
        for seed in range(12):  # among them most operations of the policies
            assert made.augment(picture, np.random.default_rng(seed)).shape == (1, *made.size)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_that_the_model_reads(name, channels):
    import timm

    model = timm.create_model(name, pretrained=False, in_chans=channels)
    assert Preprocessing.for_timm(model, ImageConfig()).channels == channels


def test_a_model_of_one_channel_says_so_and_is_read_back():
    saved = Preprocessing.for_timm(CFG, ImageConfig(), 1).timm_settings()
    assert saved["input_size"] == [1, 32, 32]
    assert Preprocessing.for_timm(saved, ImageConfig()).timm_settings() == saved


# --- chance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["timm", "transformers"])
@pytest.mark.parametrize("config", [{}, {"augment": "trivial"}, {"augment": "rand", "erase": 0.5}, {"erase": 1.0}])
def test_augmenting_follows_from_rng_alone(source, config):
    chosen = ImageConfig(**config)
    made = (
        Preprocessing.for_timm(CFG, chosen)
        if source == "timm"
        else Preprocessing.for_transformers(processor("vit"), chosen)
    )
    picture = draw(80, 60)
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    first, again, other = (made.augment(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    after = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert first.dtype == torch.uint8
    assert first.shape == (3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_way_to_augment_is_another():
    picture, seeds = draw(80, 60), range(10)
    made = [
        preprocessing(augment=how, erase=erase)
        for how, erase in (("none", 0.0), ("crop", 0.0), ("trivial", 0.0), ("rand", 0.0), ("none", 1.0), ("crop", 1.0))
    ]
    looks = [torch.stack([way.augment(picture, np.random.default_rng(s)) for s in seeds]) for way in made]
    assert all(torch.equal(look, made[0].evaluate(picture)) for look in looks[0])
    for i, one in enumerate(looks):
        assert all(not torch.equal(one, other) for other in looks[i + 1 :])


def test_flip_mirrors_half_of_the_pictures_and_can_be_off():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3)))

    def mirrored(flip):
        looks = (preprocessing(flip=flip).augment(ramp, np.random.default_rng(seed)).float() for seed in range(60))
        return sum(bool(look[:, :, 0].mean() > look[:, :, -1].mean()) for look in looks)

    assert 15 < mirrored(True) < 45
    assert mirrored(False) == 0


def test_erasing_fills_a_rectangle_with_the_mean_colour():
    picture = Image.new("RGB", (40, 40), (250, 1, 250))
    colour = torch.tensor([round(255 * mean) for mean in CFG["mean"]]).view(3, 1, 1)
    for seed in range(10):
        pixels = preprocessing(augment="none", erase=1.0).augment(picture, np.random.default_rng(seed))
        erased = (pixels == colour).all(0)
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * columns > 0
        assert (pixels[1][~erased] == 1).all()
    share = [
        bool((preprocessing(augment="none", erase=0.3).augment(picture, np.random.default_rng(s))[1] != 1).any())
        for s in range(100)
    ]
    assert 15 < sum(share) < 45


# --- mixing ---------------------------------------------------------------------------------------------------------

BLACK, WHITE = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((3, 20, 30), 255, dtype=torch.uint8)


@pytest.mark.parametrize("config", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_the_target_says_what_is_in_the_pixels(config):
    kinds = []
    for seed in range(40):
        pixels, target = mix(BLACK, 2, WHITE, 0, 5, np.random.default_rng(seed), ImageConfig(**config))
        assert pixels.dtype == torch.uint8
        assert target.dtype == torch.float32
        assert float(target.sum()) == pytest.approx(1, abs=1e-6)
        assert target[[1, 3, 4]].sum() == 0
        assert pixels.float().mean() / 255 == pytest.approx(float(target[0]), abs=0.003)
        kinds.append("cutmix" if len(pixels.unique()) == 2 else "mixup")
    assert all(kinds.count(kind) > 10 for kind in config)


def test_cutmix_pastes_one_rectangle_and_leaves_its_inputs():
    for seed in range(20):
        pixels, _ = mix(BLACK, 0, WHITE, 1, 2, np.random.default_rng(seed), ImageConfig(cutmix=1.0))
        pasted = pixels[0] == 255
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()
    assert not BLACK.any()
    assert (WHITE == 255).all()


def test_a_row_mixed_with_its_own_class_keeps_its_label():
    _, target = mix(BLACK, 1, WHITE, 1, 2, np.random.default_rng(0), ImageConfig(mixup=1.0))
    assert target.tolist() == pytest.approx([0, 1])


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_is_read_from_its_bytes_or_its_path(channels, tmp_path):
    picture, path = draw(9, 7), tmp_path / "a.png"
    picture.save(path)
    from_path = read({"id": "1", "path": str(path), "bytes": None}, channels)
    from_bytes = read(row(picture), channels)
    assert np.array_equal(from_path, picture.convert("RGB" if channels == 3 else "L"))
    assert np.array_equal(from_path, from_bytes)


@pytest.mark.parametrize(
    ("path", "content", "named"), [("gone.png", None, "gone.png"), ("a.png", b"no picture", "a.png"), (None, b"", "7")]
)
def test_a_picture_that_cannot_be_read_is_named(path, content, named, tmp_path):
    where = None if path is None else str(tmp_path / path)
    with pytest.raises(UserError, match=rf"(^|/){named}: .+; mend or remove it$") as caught:
        read({"id": "7", "path": where, "bytes": content}, 3)
    assert "\n" not in str(caught.value)


def test_workers_follow_the_cores(monkeypatch):
    monkeypatch.setattr("graftkit.images.cores", lambda: 16)
    assert [reading_processes(ImageConfig(), processes) for processes in (1, 2, 4, 8)] == [8, 7, 3, 0]
    assert reading_processes(ImageConfig(workers=0)) == 0


def test_the_settings_are_read_from_flags():
    @dataclass(frozen=True)
    class Config:
        image: ImageConfig = field(default_factory=ImageConfig)

    read_in = parse(Config, ["--image.size", "96", "--image.augment", "rand", "--image.flip", "false"]).image
    assert (read_in.size, read_in.augment, read_in.flip, read_in.mixes) == (96, "rand", False, False)
    with pytest.raises(UserError, match="one of none, crop, trivial, rand"):
        parse(Config, ["--image.augment", "autoaugment"])
    for flags in (["--image.crop", "0.5"], ["--image.flip", "true"]):
        with pytest.raises(UserError, match=f"^{flags[0]} does nothing with --image.augment none"):
            parse(Config, ["--image.augment", "none", *flags])
    with pytest.raises(UserError, match=r"--image\.cache_side does nothing without"):
        parse(Config, ["--image.cache_side", "128"])


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list[dict]:
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    return [
        row(draw(*shape, seed=i), str(i)) for i, shape in enumerate([(80, 64), (40, 70), (20, 30), (1, 50), (64, 64)])
    ]


@pytest.fixture
def no_decoding(monkeypatch):
    """Makes decoding an error, once it is called."""

    def forbid():
        monkeypatch.setattr(image_cache, "read", lambda row, channels: pytest.fail("decoded again"))

    return forbid


def files(pattern: str = "*"):
    return sorted((image_cache.cache_folder() / "pictures").glob(pattern))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_evaluation_is_the_same_from_the_cache(rows, no_decoding, source, channels):
    config = ImageConfig()
    made = (
        Preprocessing.for_timm(CFG, config, channels)
        if source == "timm"
        else Preprocessing.for_transformers(processor("vit"), config, channels)
    )
    wanted = [made.evaluate(read(r, channels)) for r in rows]
    assert "made in" in open_cache(rows, made, training=False).note
    no_decoding()
    cache = open_cache(rows, made, training=False)
    assert "found" in cache.note
    assert len(cache) == len(rows)
    assert all(torch.equal(cache.pixels(i), wanted[i]) for i in range(len(rows)))


@pytest.mark.parametrize("channels", [1, 3])
def test_training_pictures_are_kept_at_a_short_side(rows, no_decoding, channels):
    made = preprocessing(channels, cache=True, cache_side=32)
    smaller = [shrink(read(r, channels), 32) for r in rows]
    cache = open_cache(rows, made, training=True)
    assert "short side of 32; crops come from these" in cache.note
    no_decoding()
    cache = open_cache(rows, made, training=True)
    assert [cache.picture(i).size for i in range(5)] == [(40, 32), (32, 56), (20, 30), (1, 50), (32, 32)]
    for i, picture in enumerate(smaller):
        assert cache.picture(i).mode == ("RGB" if channels == 3 else "L")
        assert np.array_equal(cache.picture(i), picture)
        wanted = made.augment(picture, np.random.default_rng(i))
        assert torch.equal(cache.pixels(i, np.random.default_rng(i)), wanted)


def test_training_without_augmentation_keeps_the_pixels_of_evaluation(rows):
    made = preprocessing(augment="none", erase=1.0)
    cache = open_cache(rows, made, training=True)
    for i, r in enumerate(rows):
        wanted = made.augment(read(r), np.random.default_rng(i))
        assert torch.equal(cache.pixels(i, np.random.default_rng(i)), wanted)
    assert torch.equal(cache.pixels(0), made.evaluate(read(rows[0])))  # what is kept has not been erased


def test_a_cache_smaller_than_what_the_model_sees_is_refused(rows):
    with pytest.raises(UserError, match=r"cache_side 24 is less than the 32 pixels .* set --image.cache_side 37"):
        open_cache(rows, preprocessing(cache=True, cache_side=24), training=True)


def test_the_key_follows_content_order_geometry_and_channels(rows):
    wide = CFG | {"crop_pct": 1.0}
    open_cache(rows, preprocessing(), training=False)
    for others, made, training in [
        (rows[::-1], preprocessing(), False),
        (rows[:-1], preprocessing(), False),
        ([*rows[:-1], row(draw(64, 64, seed=99))], preprocessing(), False),
        (rows, Preprocessing.for_timm(wide, ImageConfig()), False),
        (rows, preprocessing(size=40), False),
        (rows, preprocessing(1), False),
        (rows, Preprocessing.for_transformers(processor("vit"), ImageConfig()), False),
        (rows, Preprocessing.for_transformers(processor("swin"), ImageConfig()), False),
        (rows, preprocessing(), True),
        (rows, preprocessing(cache=True, cache_side=64), True),
    ]:
        before = len(files())
        open_cache(others, made, training=training)
        assert len(files()) == before + 1
    open_cache(
        [r | {"id": f"new {r['id']}", "label": "b"} for r in rows], preprocessing(augment="rand"), training=False
    )
    assert len(files()) == before + 1  # names, labels and chance change no pixel


def test_rows_of_a_data_set_are_cached(rows):
    from datasets import Dataset

    made = preprocessing()
    cache = open_cache(Dataset.from_list(rows), made, training=False)
    assert open_cache(rows, made, training=False).path == cache.path


def spoil(path, how: str) -> None:
    """Write over a cache file (a new file in its place: an open map of the old one stays valid)."""
    content = path.read_bytes()
    spoilt = {
        "cut short": content[:-1],
        "only begun": bytes(len(content)),
        "empty": b"",
        "foreign": b"\x80\x04\x95 not a cache",
        "other JSON": b"[1, 2]",
        "of another key": content.replace(path.stem.encode(), b"0" * 32),
    }
    path.unlink()
    path.write_bytes(spoilt[how])


@pytest.mark.parametrize("how", ["cut short", "only begun", "empty", "foreign", "other JSON", "of another key"])
def test_what_is_no_whole_cache_is_made_again(rows, how):
    made = preprocessing()
    spoil(open_cache(rows, made, training=False).path, how)
    cache = open_cache(rows, made, training=False)
    assert "made in" in cache.note
    assert torch.equal(cache.pixels(1), made.evaluate(read(rows[1])))


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_a_run_that_stops_leaves_nothing(rows, error, monkeypatch):
    def fail(row, channels):
        if row["id"] == "3":
            raise error("stop")
        return read(row, channels)

    monkeypatch.setattr(image_cache, "read", fail)
    with pytest.raises(error):
        open_cache(rows, preprocessing(), training=False)
    assert files() == []


def in_a_fork(work) -> int:
    """Start a process that does this and no more; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_killed_run_leaves_no_half_cache_and_its_file_is_swept_away(rows, monkeypatch):
    def work():
        image_cache.read = lambda row, channels: os.kill(os.getpid(), signal.SIGKILL)
        open_cache(rows, preprocessing(), training=False)

    assert os.waitpid(in_a_fork(work), 0)[1] == signal.SIGKILL
    (left,) = files()
    assert left.suffix == ".part"
    assert "made in" in open_cache(rows, preprocessing(), training=False).note
    assert left in files()  # its writer may be alive
    os.utime(left, (0, 0))
    open_cache(rows, preprocessing(), training=True)
    assert left not in files()


def test_two_processes_may_make_it_at_once(rows, no_decoding):
    made = preprocessing()
    wanted = [made.evaluate(read(r)) for r in rows]
    children = [in_a_fork(lambda: open_cache(rows, made, training=False)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    no_decoding()
    cache = open_cache(rows, made, training=False)
    assert all(torch.equal(cache.pixels(i), wanted[i]) for i in range(len(rows)))
    assert files("*.part") == []


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_it(rows, start):
    made = preprocessing(cache=True, cache_side=32)
    cache = open_cache(rows, made, training=True)
    wanted = [cache.pixels(i, np.random.default_rng(i)) for i in range(len(rows))]
    if start == "spawn":  # what a spawned worker is sent
        sent = pickle.dumps(cache)
        assert len(sent) < 10_000
        got = [pickle.loads(sent).pixels(i, np.random.default_rng(i)) for i in range(len(rows))]
    else:
        loader = torch.utils.data.DataLoader(Augmented(cache), batch_size=None, num_workers=2)
        got = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@dataclass
class Augmented:
    """Rows of a cache, each with its own chance, as a data set."""

    cache: image_cache.PictureCache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return self.cache.pixels(index, np.random.default_rng(index))


def test_a_cache_folder_that_cannot_be_written_is_named(rows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*set GRAFTKIT_CACHE"):
        open_cache(rows, preprocessing(), training=False)

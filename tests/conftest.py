"""Tiny offline checkpoints and data: random weights, real code paths."""

from __future__ import annotations

import csv
import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import Hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are quicker so, and tests share the cores

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama")
IMAGE_KINDS = ("test_resnet", "test_efficientnet", "test_vit", "test_convnext", "vit", "swin", "convnext")
WORDS = {
    "fruit": ["apple", "pear", "plum", "fig", "grape", "melon"],
    "tool": ["saw", "drill", "hammer", "file", "plane", "wrench"],
    "bird": ["robin", "crow", "heron", "finch", "wren", "gull"],
}
FILLER = ["the", "a", "old", "new", "red", "small", "on", "my", "desk", "is", "here", "again", "very", "fine"]


def pytest_configure(config: pytest.Config) -> None:
    """No bars and load reports of transformers between the dots."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the real data where they are not."""
    if assets() is None:
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="no GRAFTKIT_ASSETS and no ../shared"))


def assets() -> Path | None:
    """The folder with `data/` and `checkpoints/`, if this machine has it."""
    folder = Path(os.environ.get("GRAFTKIT_ASSETS", ROOT.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of 3 to 14 words that name a fruit, a tool or a bird, and which of these: learnable, not trivial."""
    import random

    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = list(WORDS)[i % 3]
        words = rng.choices(FILLER, k=rng.randint(2, 13))
        words.insert(rng.randint(0, len(words)), rng.choice(WORDS[label]))
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, rows: Sequence[tuple[str, ...]], header: Sequence[str] = ("text", "label")) -> Path:
    """A csv file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (47 rows), dev.csv (13) and test.csv (19): none divides by much."""
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 47, 1), ("dev", 13, 2), ("test", 19, 3)):
        write_csv(folder / f"{split}.csv", texts(count, seed))
    return folder


def save_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer of whole words and letters; GPT-style ones have no padding token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>"]
    words = sorted({word for group in WORDS.values() for word in group} | set(FILLER))
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = special + letters + [f"##{c}" for c in letters] + [word for word in words if word not in letters]
    pieces += ["[MASK]"] if kind not in ("gpt2", "llama") else []
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names: dict[str, str] = {"unk_token": "[UNK]"}
    if kind in ("gpt2", "llama"):
        names["eos_token"] = "<eos>"
    else:
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, model_input_names=inputs, **names
    ).save_pretrained(folder)


def make_checkpoint(folder: Path, kind: str, *, dropout: float = 0.0, headless: bool = True) -> Path:
    """A random checkpoint of 2 or 3 small blocks, with a tokenizer, as its own class saves it."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    save_tokenizer(folder, kind)
    size = {"vocab_size": 180, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    wide = {"intermediate_size": 64, "max_position_embeddings": 48}
    configs: dict[str, Callable[[], t.PretrainedConfig]] = {
        "bert": lambda: t.BertConfig(**size, **wide, **drop),
        "roberta": lambda: t.RobertaConfig(**size, **wide, **drop, pad_token_id=0),
        "distilbert": lambda: t.DistilBertConfig(
            vocab_size=180, n_layers=3, dim=32, n_heads=2, hidden_dim=64, max_position_embeddings=48,
            dropout=dropout, attention_dropout=dropout, seq_classif_dropout=dropout,
        ),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=180, n_layer=3, n_embd=32, n_head=2, n_positions=48, resid_pdrop=dropout, embd_pdrop=dropout,
            attn_pdrop=dropout, bos_token_id=4, eos_token_id=4,
        ),
        "llama": lambda: t.LlamaConfig(
            **size, **wide, num_key_value_heads=2, attention_dropout=dropout, bos_token_id=None, eos_token_id=4
        ),
        "t5": lambda: t.T5Config(
            vocab_size=180, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=dropout,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
        ),
        "bart": lambda: t.BartConfig(
            vocab_size=180, d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=48,
            dropout=dropout, pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3,
            forced_eos_token_id=3,
        ),
    }  # fmt: skip
    auto = t.AutoModel if headless else t.AutoModelForSequenceClassification
    auto.from_config(configs[kind]()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tiny checkpoint of a kind, once a session: `checkpoint("bert", dropout=0.1)`."""
    made: dict[tuple[str, float, bool], Path] = {}

    def make(kind: str, dropout: float = 0.0, headless: bool = True) -> Path:
        key = (kind, dropout, headless)
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(kind), kind, dropout=dropout, headless=headless)
        return made[key]

    return make


def make_image_checkpoint(folder: Path, kind: str) -> Path:
    """A random checkpoint of a small network for pictures of 64 x 64: timm's test networks, or of transformers."""
    import timm
    import torch
    import transformers as t
    from timm.models import save_for_hf

    torch.manual_seed(0)
    if kind.startswith("test_"):
        size = {"img_size": 64} if "vit" in kind else {}
        model = timm.create_model(kind, pretrained=False, num_classes=7, **size)
        spread_batch_norms(model)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64), "crop_pct": 0.875}
        save_for_hf(model, str(folder), safe_serialization=True)
        return folder
    small = {"image_size": 64, "num_channels": 3}
    configs: dict[str, Callable[[], t.PretrainedConfig]] = {
        "vit": lambda: t.ViTConfig(
            **small, patch_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
        ),
        "swin": lambda: t.SwinConfig(
            **small, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        "convnext": lambda: t.ConvNextConfig(num_channels=3, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    }
    processors = {
        "vit": lambda: t.ViTImageProcessor(size={"height": 64, "width": 64}),
        "swin": lambda: t.ViTImageProcessor(size={"height": 64, "width": 64}, resample=3),
        "convnext": lambda: t.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    }
    t.AutoModel.from_config(configs[kind]()).save_pretrained(folder)
    processors[kind]().save_pretrained(folder)
    return folder


def spread_batch_norms(model) -> None:
    """Statistics that are not those of a fresh network, so that answers depend on whether they are used."""
    import torch

    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a tiny checkpoint for pictures of a kind, once a session: `image_checkpoint("test_resnet")`."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_image_checkpoint(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


SHAPES = ("disc", "square", "stripes")


def draw(shape: str, seed: int, size: tuple[int, int] = (80, 72)):
    """A picture of a bright shape somewhere on a dark ground, with noise."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng([seed, SHAPES.index(shape)])
    picture = Image.fromarray(rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8))
    pen, x, y = ImageDraw.Draw(picture), *(int(v) for v in rng.integers(5, 25, 2))
    colour = tuple(int(v) for v in rng.integers(120, 255, 3))
    if shape == "disc":
        pen.ellipse((x, y, x + 40, y + 40), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + 40, y + 40), fill=colour)
    else:
        for step in range(0, 40, 10):
            pen.rectangle((x + step, y, x + step + 4, y + 40), fill=colour)
    return picture


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 31 pictures in train, 10 in dev and 13 in test, of discs, squares and stripes, as JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count, seed in (("train", 31, 100), ("dev", 10, 200), ("test", 13, 300)):
        for i in range(count):
            shape = SHAPES[i % 3]
            (folder / split / shape).mkdir(parents=True, exist_ok=True)
            draw(shape, seed + i, (80 + i % 5, 72)).save(folder / split / shape / f"{i:02d}.jpg", quality=92)
    return folder


def load_recipe(name: str):
    """A recipe as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_recipe(name: str, *words: object) -> dict:
    """Run a recipe in this process, with command-line words; its metrics."""
    from graftkit.config import parse

    recipe = load_recipe(name)
    return recipe.main(parse(recipe.Config, [str(word) for word in words]))


def launch(name: str, *words: object, **how) -> subprocess.Popen:
    """Start a recipe in processes of its own: see `launch_script`."""
    return launch_script(ROOT / "recipes" / f"{name}.py", *words, **how)


def launch_script(script: Path, *words: object, processes: int = 1, threads: int = 1, **popen) -> subprocess.Popen:
    """Start a script in processes of its own, under torchrun if there are several, with so many threads each."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **(pipes | popen))


def finish(process: subprocess.Popen, code: int = 0, timeout: float = 240) -> str:
    """What a launched recipe printed, once it ended with this exit code."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def free_port() -> int:
    """A port that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Clock:
    """A clock on which to sleep takes no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def monotonic(self) -> float:
        import time

        return time.monotonic() + sum(self.slept)

    def __getattr__(self, name: str):
        import time

        return getattr(time, name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A stand-in for the Hub: see `hub_server`."""
    from hub_server import running_hub

    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """For the client of the Hub, waiting takes no time."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    from graftkit.hub import client

    clock = Clock()
    for module in (client, _http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def hub(server: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, with no faults, as this process's Hub; nobody waits for real, but on silence."""
    import functools
    import shutil
    import ssl

    from huggingface_hub import constants

    certificates = functools.cache(ssl.create_default_context)  # each client reads them anew, for 80 ms
    for name, value in server.environment("hf_write_me", tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(ssl, "create_default_context", certificates)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    shutil.rmtree(server.folder / "objects", ignore_errors=True)
    server.repos.clear()
    server.clear()
    yield server
    server.clear()


@pytest.fixture
def predict(capsys):
    """Runs `graft predict` in this process; its answers."""
    import json

    from graftkit import cli

    def call(*words):
        assert cli.main(["predict", *map(str, words)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call

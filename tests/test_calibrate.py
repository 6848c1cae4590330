"""Does one temperature make probabilities true, and change nothing else, wherever the model goes?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_KINDS, KINDS, run_recipe
from torch import nn

from graftkit import cli
from graftkit.backbone import BackboneConfig
from graftkit.calibrate import describe, fit, fold
from graftkit.fingerprint import file_hashes
from graftkit.heads import load_classifier
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.report.tables import read_predictions
from graftkit.text import load_tokenizer, pad

LABELS = ["bird", "fruit", "tool"]


def text_logits(folder: Path):
    """A model with a head for three labels, and what gives its logits of four texts."""
    config = BackboneConfig(name=str(folder))
    tokenizer = load_tokenizer(config)
    model = load_classifier(config, LABELS, tokenizer, 0).model.eval()
    inputs = pad(tokenizer, [dict(tokenizer(text)) for text in ("a red robin", "the saw", "old fig here", "gull")])
    return model, lambda: model(**inputs).logits.detach().numpy()


def picture_logits(folder: Path):
    image = load_image_classifier(ImageBackboneConfig(name=str(folder)), ImageConfig(), LABELS, 0)
    model, height = image.headed.model.eval(), image.preprocessing.size[0]
    pixels = torch.rand(4, 3, height, height, generator=torch.Generator().manual_seed(0))

    def ask() -> np.ndarray:
        output = model(pixels)
        return getattr(output, "logits", output).detach().numpy()

    return model, ask


def check_divided(model: nn.Module, ask, temperature: float) -> list[str]:
    """Fold a temperature, and see that the logits are divided and few tensors changed; the names of these."""
    with torch.no_grad():
        for parameter in model.parameters():  # a bias of zeros would hide that it is forgotten
            parameter += 0.1 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))
    before, weights = ask(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fold(model, temperature, ask)
    np.testing.assert_allclose(ask() * temperature, before, rtol=1e-5, atol=1e-5)
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_of_a_text_classifier_is_divided(kind, checkpoint):
    changed = check_divided(*text_logits(checkpoint(kind)), 1.7)
    layers = {name.rpartition(".")[0] for name in changed}
    assert len(layers) == 1
    assert layers <= {"classifier", "classifier.out_proj", "score"}


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_the_last_layer_of_a_picture_classifier_is_divided(kind, image_checkpoint):
    changed = check_divided(*picture_logits(image_checkpoint(kind)), 0.6)
    assert len({name.rpartition(".")[0] for name in changed}) == 1


def test_two_last_layers_that_share_the_work_are_both_divided():
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    model = VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3
    ).eval()
    pixels = torch.rand(4, 3, 32, 32)
    changed = check_divided(model, lambda: model(pixels).detach().numpy(), 1.7)
    assert {name.rpartition(".")[0] for name in changed} == {"head", "head_dist"}


def test_a_model_whose_logits_no_layer_divides_is_left_as_it_was():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(5, 3)

        def forward(self, rows):
            return torch.nn.functional.normalize(self.last(rows), dim=-1)

    model, rows = Normalised(), torch.rand(4, 5)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    assert not fold(model, 2.0, lambda: model(rows).detach().numpy())
    assert all(map(torch.equal, before, model.state_dict().values()))


def records(logits: np.ndarray, truth: list[int]) -> list[dict]:
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [
        {"label": LABELS[label], "prediction": LABELS[row.argmax()], "logits": row, "probabilities": chance}
        for row, chance, label in zip(logits, chances, truth, strict=True)
    ]


def test_rows_without_an_error_give_no_temperature():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2] * 20]
    assert fit(records(logits, [0, 1, 2] * 20), LABELS) == (
        None,
        "no dev row is wrong, so nothing says how unsure to be",
    )


def test_a_model_that_is_too_sure_gets_a_temperature_above_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3)).astype(np.float32) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = [int(rng.choice(3, p=chance / chance.sum())) for chance in chances.astype(np.float64)]
    temperature, reason = fit(records(3 * logits, truth), LABELS)
    assert temperature == pytest.approx(3, rel=0.1)
    assert reason is None
    facts = describe(records(3 * logits, truth), LABELS, temperature, None, 0.1)
    assert facts["rows"] == 3000
    assert 0 < facts["set_threshold"] < 0.5 < facts["abstain_below"] < 1


@pytest.fixture(
    scope="module",
    params=[
        "bert",
        pytest.param("gpt2 lora", marks=pytest.mark.slow),
        pytest.param("test_efficientnet", marks=pytest.mark.slow),
    ],
)
def pair(request, tmp_path_factory, checkpoint, image_checkpoint, data, pictures) -> tuple[Path, Path]:
    """Two runs that differ in nothing but --report.calibrate: with it, and without."""
    folder = tmp_path_factory.mktemp("runs")
    common = ("--train.epochs", 3, "--train.batch_size", 8, "--train.head_lr", 5e-3, "--run.precision", "fp32")
    if request.param in IMAGE_KINDS:
        recipe = "image_classify"
        words = ("--backbone.name", image_checkpoint(request.param), "--data.path", pictures, "--image.workers", 0)
    else:
        kind, *lora = request.param.split()
        recipe = "text_classify"
        words = (
            "--backbone.name",
            checkpoint(kind),
            "--data.path",
            data,
            *("--adapt.strategy", *lora)[: 2 * len(lora)],
        )
    for name, wanted in (("with", "true"), ("without", "false")):
        asked = ("--report.calibrate", wanted, "--report.metrics", "brier_score")
        run_recipe(recipe, *words, *common, "--run.out", folder / name, *asked)
    return folder / "with", folder / "without"


def calibration(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["calibration"]


def content(file: Path):
    """The bytes of a file; of settings what they say, since PEFT writes sets in any order."""
    if file.suffix != ".json":
        return file.read_bytes()
    said = json.loads(file.read_text())
    return {name: sorted(map(str, value)) if isinstance(value, list) else value for name, value in said.items()}


def logits(folder: Path, split: str) -> np.ndarray:
    return np.stack([record["logits"] for record in read_predictions(folder, split)[1]])


def test_only_the_probabilities_change(pair):
    calibrated, plain = pair
    facts = calibration(calibrated)
    assert facts["temperature"] is not None
    assert calibration(plain)["temperature"] is None
    for split in ("dev", "test"):
        before, after = logits(plain, split), logits(calibrated, split)
        assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
        np.testing.assert_allclose(after * facts["temperature"], before, rtol=1e-4, atol=1e-5)
    loss = [json.loads((folder / "metrics.json").read_text())["dev"]["scores"]["log_loss"] for folder in pair]
    assert loss[0] < loss[1]


def test_the_saved_settings_say_it(pair):
    calibrated, _ = pair
    model = calibrated / "model"
    file = next(model / name for name in ("labels.json", "config.json") if (model / name).exists())
    assert json.loads(file.read_text())["calibration"] == calibration(calibrated)


def test_graft_calibrate_makes_the_run_that_was_calibrated_at_once(pair, tmp_path, capsys):
    calibrated, plain = pair
    made = tmp_path / "made"
    made.mkdir()  # an empty folder will do
    assert cli.main(["calibrate", str(plain), "--out", str(made)]) == 0, capsys.readouterr().err
    for split in ("dev", "test"):
        np.testing.assert_allclose(logits(made, split), logits(calibrated, split), rtol=1e-4, atol=1e-5)
    for file in sorted((calibrated / "model").iterdir()):
        assert content(made / "model" / file.name) == content(file), file.name
    facts, at_once = (json.loads((folder / "run.json").read_text()) for folder in (made, calibrated))
    assert facts["saved"]["files"] == file_hashes(made / "model")
    assert facts["metrics"]["test"] == pytest.approx(at_once["metrics"]["test"], abs=1e-5)
    if at_once["saved"].get("overlong"):
        said, expected = (record["saved"]["overlong"]["probabilities"] for record in (facts, at_once))
        assert said == pytest.approx(expected, abs=1e-5)
    again = cli.main(["calibrate", str(made), "--out", str(tmp_path / "again")])
    assert (again, "calibrated already" in capsys.readouterr().err) == (2, True)
    assert not (tmp_path / "again").exists()


def test_an_evaluation_knows_what_the_settings_of_the_model_say(pair, tmp_path, capsys):
    calibrated, _ = pair
    path = json.loads((calibrated / "run.json").read_text())["data"]["path"]
    words = ["evaluate", calibrated / "model", "--data.path", path, "--run.out", tmp_path / "found"]
    assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert calibration(tmp_path / "found") == calibration(calibrated)


def test_graft_calibrate_needs_a_run_and_an_empty_folder(pair, tmp_path, capsys):
    _, plain = pair
    model = shutil.copytree(plain / "model", tmp_path / "model")
    for words, part in (
        ([model], "is no run"),
        ([plain, "--out", model], "exists; name another folder"),
        ([tmp_path / "nowhere"], "nowhere"),
    ):
        assert cli.main(["calibrate", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert part in error

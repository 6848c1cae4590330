"""Does an explanation say what moved the model, and all that moved it?"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KINDS, draw, run_recipe, texts
from test_report import make_records, make_run

from graftkit import cli
from graftkit.classifiers import find_classifier, load_classifier
from graftkit.errors import UserError
from graftkit.explain import (
    ERRORS,
    GAP,
    LEAST,
    STEPS,
    UNSURE,
    _explain_row,
    by_word,
    choose,
    explain_picture,
    explain_test,
    explain_text,
    integrate,
)
from graftkit.hub import cargo
from graftkit.images import ImageConfig, Preprocessing
from graftkit.report.explanations import TABLE, read_explanations
from graftkit.report.tables import read_rows, table_hashes
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification

LABELS = ["bird", "fruit", "tool"]


def asked(folder, seed=0, shake=0.1):
    """The task and the model of a checkpoint with a head, its weights shaken so that answers depend on the words."""
    import transformers as t

    model = t.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return TextClassification(tokenizer, LABELS), model.eval()


def total(made):
    return made["rest"] + sum(score for text in made["texts"] for _, score in text if score is not None)


# --- texts -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
@pytest.mark.parametrize(
    ("text", "pair", "cut"),
    [
        ("My red Apple, isn't it", None, False),
        ("an old saw", "here, a 苹果", False),
        ("plum on desk " * 40, None, True),
    ],
    ids=["one", "pair", "cut"],
)
def test_words_add_up_to_the_lead(checkpoint, kind, text, pair, cut):
    task, model = asked(checkpoint("bert" if kind == "lora" else kind, headless=False))
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
        model = get_peft_model(model, settings).eval()
    made = explain_text(task, model, {"id": "a", "text": text, "text_pair": pair}, 2, 0)
    with torch.no_grad():
        logits = model(**task.tokenizer(text, pair, truncation=True, return_tensors="pt")).logits[0]
    assert made["answer"] == pytest.approx(float(logits[2] - logits[0]), abs=1e-5)
    change = made["answer"] - made["baseline"]
    assert abs(change) > 1e-3
    assert abs(total(made) - change) == pytest.approx(made["gap"], abs=1e-9)
    assert made["gap"] <= GAP * max(abs(change), LEAST)
    said = ["".join(words for words, _ in part) for part in made["texts"]]
    assert made["cut"] == cut
    if cut:
        assert text.startswith(said[0])
        assert len(said[0].split()) <= 40
    else:
        assert said == [one for one in (text, pair) if one is not None]


def test_special_tokens_move_nothing_and_pieces_outside_of_words_are_the_rest(checkpoint):
    task, model = asked(checkpoint("bert", headless=False))
    made = explain_text(task, model, {"id": "a", "text": "", "text_pair": None}, 0, 1)
    assert made["answer"] == made["baseline"]
    assert made["rest"] == 0
    assert made["texts"] == [[]]


def test_a_word_that_the_head_does_not_see_moves_nothing(checkpoint):
    """A linear model of one word: the whole change is that word's, and its sign is right."""

    class Weighs(torch.nn.Module):
        def __init__(self, layer, wanted):
            super().__init__()
            self.layer, self.wanted = layer, wanted

        def get_input_embeddings(self):
            return self.layer

        def forward(self, input_ids, **others):
            lead = (self.layer(input_ids) * (input_ids == self.wanted)[..., None]).sum((1, 2))
            return SimpleNamespace(logits=torch.stack([lead, 0 * lead], 1))

    task, model = asked(checkpoint("bert", headless=False))
    layer, plum = model.get_input_embeddings(), task.tokenizer.convert_tokens_to_ids("plum")
    made = explain_text(task, Weighs(layer, plum), {"id": "a", "text": "a red plum again"}, 0, 1)
    scores = dict(made["texts"][0])
    weight = float((layer.weight[plum] - layer.weight[task.tokenizer.pad_token_id]).sum().detach())
    assert scores["plum"] == pytest.approx(weight, abs=1e-5)
    assert [scores[word] for word in ("a", "red", "again")] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_model_that_reads_its_embeddings_twice_is_refused(checkpoint):
    task, model = asked(checkpoint("bert", headless=False))
    plain = model.forward
    model.forward = lambda **inputs: (model.get_input_embeddings()(inputs["input_ids"]), plain(**inputs))[1]
    with pytest.raises(UserError, match="reads its embeddings 2 times"):
        explain_text(task, model, {"id": "a", "text": "a plum"}, 0, 1)


@pytest.mark.parametrize(("slope", "steps"), [(1, STEPS[0]), (60, STEPS[1]), (1e5, STEPS[-1])])
def test_steps_are_raised_until_the_scores_add_up(slope, steps):
    def lead(embedded):
        return torch.sigmoid(slope * (embedded.sum((1, 2)) - 0.6))

    full, empty = torch.full((1, 4, 2), 1 / 8), torch.zeros(1, 4, 2)
    change = float(lead(full) - lead(empty))
    scores, taken = integrate(lead, full, empty, change)
    assert taken == steps
    assert len(scores) == 4
    assert (abs(sum(scores) - change) <= GAP * max(abs(change), LEAST)) == (slope < 1e5)


@pytest.mark.parametrize(
    ("text", "pieces", "cut", "said", "rest"),
    [
        ("old saws", [("old", 1), ("saw", 2), ("s", 3)], False, [("old", 1), (" ", None), ("saws", 5)], 0),
        ("isn't, so", [("isn", 1), ("'", 2), ("t", 4), (",", 8), (" so", 16)], False,
         [("isn't", 7), (",", 8), (" ", None), ("so", 16)], 0),
        ("a  b", [("a", 1), (" ", 2), ("b", 4)], False, [("a", 1), ("  ", None), ("b", 4)], 2),
        ("हिन्दी ok", [("हि", 1), ("न्दी", 2), ("ok", 4)], False, [("हिन्दी", 3), (" ", None), ("ok", 4)], 0),
        ("我爱你 a", [("我", 1), ("爱你", 2), ("a", 4)], False, [("我", 1), ("爱你", 2), (" ", None), ("a", 4)], 0),
        ("one two, three", [("one", 1), ("two", 2)], True, [("one", 1), (" ", None), ("two", 2)], 0),
        ("one \u200btwo", [("one", 1), ("two", 2)], False, [("one", 1), (" ", None), ("\u200b", None), ("two", 2)], 0),
    ],
)  # fmt: skip
def test_pieces_become_words(text, pieces, cut, said, rest):
    offsets, place = [], 0
    for piece, _ in pieces:
        start = text.index(piece, place)
        place = start + len(piece)
        offsets.append((start, place))
    assert by_word(text, offsets, [score for _, score in pieces], cut=cut) == (said, rest)


# --- which rows --------------------------------------------------------------


def test_the_worst_errors_and_then_the_least_certain_are_chosen():
    records = make_records(200, lead=1.0)
    places = choose(records)
    assert len(places) == len(set(places)) == ERRORS + UNSURE
    wrong = [place for place, record in enumerate(records) if record["label"] != record["prediction"]]
    assert places[:ERRORS] == sorted(wrong, key=lambda place: -records[place]["loss"])[:ERRORS]

    def margin(place):
        second, first = np.sort(records[place]["probabilities"])[-2:]
        return first - second

    rest = sorted(set(range(200)) - set(places[:ERRORS]), key=margin)
    assert places[ERRORS:] == rest[:UNSURE]
    assert sorted(choose(records[:5])) == list(range(5))


# --- a run -------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(checkpoint, data, tmp_path_factory):
    """A run on texts that explains its answers, and learnt the words that decide."""
    folder = tmp_path_factory.mktemp("explained") / "run"
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--run.out", folder, "--run.precision", "fp32"]
    words += ["--train.epochs", 6, "--train.batch_size", 8, "--train.lr", 4e-3, "--train.head_lr", 1e-2]
    run_recipe("text_classify", *words, "--report.explain", "true")
    return folder


def test_a_run_explains_its_answers(explained):
    run = json.loads((explained / "run.json").read_text())
    found = read_explanations(explained)
    facts = run["explanations"]
    assert facts["rows"] == len(found) > UNSURE
    assert facts["method"] == "integrated gradients"
    assert facts["baseline"] == "[PAD]"
    assert 0 <= facts["largest_gap"] == max(one.gap_share for one in found) <= GAP
    assert facts["most_steps"] in STEPS
    assert facts["seconds"] > 0
    assert run["seconds"]["explain"] >= facts["seconds"]
    assert run["tables"] == table_hashes(explained)
    assert TABLE in run["tables"]
    report = (explained / "report.md").read_text()
    assert found[0].id in report.split("## Why did it say that?")[1].split("\n## ")[0]


def test_the_same_comes_later(explained, tmp_path, capsys):
    folder = shutil.copytree(explained, tmp_path / "run")
    (folder / TABLE).unlink()
    before = read_explanations(explained)
    assert cli.main(["report", str(folder)]) == 0
    assert "graft report RUN --explain" in (folder / "report.md").read_text()
    assert cli.main(["report", str(folder), "--explain"]) == 0
    for one, other in zip(before, read_explanations(folder), strict=True):
        assert one.id == other.id
        assert [word for word, _ in one.words] == [word for word, _ in other.words]
        assert [score for _, score in one.words] == pytest.approx([score for _, score in other.words], abs=1e-6)
    assert json.loads((folder / "run.json").read_text())["tables"] == table_hashes(folder)
    (folder / TABLE).write_bytes((folder / TABLE).read_bytes() + b" ")
    assert cli.main(["report", str(folder)]) == 2
    assert f"{TABLE} was changed" in capsys.readouterr().err


def test_another_model_than_that_of_the_table_is_refused(explained, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(explained, tmp_path / "run")
    weights = folder / "model" / "model.safetensors"
    changed = {name: -value if "classifier" in name else value for name, value in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    assert cli.main(["report", str(folder), "--explain"]) == 2
    assert "it is not the model that made the table" in capsys.readouterr().err
    assert (folder / TABLE).read_bytes() == (explained / TABLE).read_bytes()


def test_nothing_of_it_leaves_with_a_push(explained, tmp_path):
    said = "".join(words for words, _ in max((one.texts[0] for one in read_explanations(explained)), key=len))
    assert said in [row["text"] for row in read_rows(explained, "test")]
    run = json.loads((explained / "run.json").read_text())
    cargo.pack_model(explained / "model", tmp_path)
    cargo.pack_run(explained, tmp_path, run, with_rows=False)
    files = [path for path in (tmp_path / cargo.RUN).rglob("*") if path.is_file()]
    assert TABLE not in {path.name for path in files}
    for path in files:
        if path.suffix != ".parquet":
            assert said not in path.read_text(encoding="utf-8"), path.name
    assert "not in this copy" in (tmp_path / cargo.RUN / "report.md").read_text().split("## Why did it say that?")[1]


def test_a_model_of_random_weights_gives_unrelated_maps(explained):
    """Adebayo et al. 2018: what only shows the input, and not the model, would give the same map for any weights."""
    from scipy.stats import spearmanr

    loaded = load_classifier(find_classifier(str(explained)), ImageConfig())
    rows = [{"id": str(i), "text": text} for i, (text, _) in enumerate(texts(24, seed=9)) if len(text.split()) > 7]

    def maps(model):
        return [
            [score for _, score in explain_text(loaded.task, model, row, 0, 1)["texts"][0] if score is not None]
            for row in rows
        ]

    first, again = maps(loaded.model), maps(loaded.model)
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        random = type(loaded.model)(loaded.model.config).eval()
        found += [spearmanr(one, other)[0] for one, other in zip(first, maps(random), strict=True)]
    assert abs(np.mean(found)) < 0.25, np.mean(found)
    assert np.mean(np.abs(found)) < 0.5, np.mean(np.abs(found))


def test_what_cannot_be_explained_is_said(tmp_path, capsys):
    said = []
    run = SimpleNamespace(settings=SimpleNamespace(keep_rows=False), say=lambda text, warning: said.append(text))
    explain_test(run, None, None, [], [])
    assert "--run.keep_rows false" in said[0]
    for place, (change, message) in enumerate(
        [({"task": "sorting"}, "not the task 'sorting'"), ({"recipe": "evaluate"}, "is an evaluation")]
    ):
        folder = make_run(tmp_path / str(place), **change)
        assert cli.main(["report", str(folder), "--explain"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--data.path", "here"]) == 2
    assert "does nothing without --explain" in capsys.readouterr().err


# --- pictures ----------------------------------------------------------------


class Corner(torch.nn.Module):
    """Says "bright" by the mean of the upper left sixteenth of a picture, and looks at nothing else."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixels):
        side = pixels.shape[-1] // 4
        lead = self.scale * pixels[..., :side, :side].mean((1, 2, 3))
        return torch.stack([lead, torch.zeros_like(lead)], dim=1)


@pytest.mark.parametrize("channels", [3, 1])
def test_the_part_that_a_model_looks_at_is_hot(channels, tmp_path):
    path = tmp_path / "disc.png"
    draw("disc", 1, (80, 80)).point(lambda value: 120 + value // 2).save(path)
    preprocessing = Preprocessing(
        channels, (80, 80), (0.4,) * channels, (0.2,) * channels, "bilinear", ImageConfig(), 1.0, "center"
    )
    task, row = ImageClassification(preprocessing, ["bright", "dark"], [], 0), {"id": "a", "path": path, "bytes": None}
    made = explain_picture(task, Corner(), row | {"label": "bright"}, 0, 1)
    heat = np.array(made["heat"])
    assert heat.shape == (10, 10)
    assert made["answer"] > 0
    assert (heat[:2, :2] > 0.1 * made["answer"]).all()  # the corner has 2.5 x 2.5 parts; a square hides 2 x 2
    seen = (task.encode(row | {"label": "bright"}, None)["pixels"].numpy() / 255 - 0.4) / 0.2
    assert heat[0, 0] == pytest.approx(seen[:, :16, :16].sum((1, 2)).mean() / 400, abs=1e-4)  # one square hid it
    assert np.abs(heat[4:]).max() == np.abs(heat[:, 4:]).max() == pytest.approx(0, abs=1e-6)
    assert explain_picture(task, Corner(), row | {"label": "bright"}, 1, 0)["heat"] == pytest.approx(-heat, abs=1e-6)
    assert made["picture"].startswith(b"\xff\xd8")
    assert len(made["picture"]) < 20_000


def test_a_run_on_pictures_explains_its_answers(image_checkpoint, pictures, tmp_path):
    folder = tmp_path / "run"
    words = ["--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--run.out", folder]
    words += ["--train.epochs", 1, "--run.precision", "fp32", "--image.workers", 0, "--report.explain", "true"]
    run_recipe("image_classify", *words)
    before, run = read_explanations(folder), json.loads((folder / "run.json").read_text())
    assert run["explanations"]["method"] == "occlusion"
    assert run["explanations"]["largest_gap"] is None
    assert len(before) == 13
    (folder / TABLE).unlink()
    assert cli.main(["report", str(folder), "--explain"]) == 0
    for one, other in zip(before, read_explanations(folder), strict=True):
        assert (one.id, one.picture) == (other.id, other.picture)
        assert np.allclose(one.heat, other.heat, atol=1e-5)
    assert (folder / "report.html").read_text().count("<use ") == 13


def test_rows_are_told_from_the_true_class_or_the_next(checkpoint):
    task, model = asked(checkpoint("bert", headless=False))
    row = {"id": "a", "text": "a plum"}
    with torch.no_grad():
        logits = model(**task.tokenizer(row["text"], return_tensors="pt")).logits[0].numpy()
    order = [LABELS[place] for place in np.argsort(-logits)]
    chances = np.exp(logits) / np.exp(logits).sum()
    record = {"id": "a", "prediction": order[0], "logits": logits, "probabilities": chances, "loss": 1.0}
    for label, other in ((order[0], order[1]), (order[1], order[1]), (order[2], order[2])):
        one = _explain_row(task, model, row, record | {"label": label}, explain_text)
        assert (one.other, one.wrong) == (other, label != order[0])
        assert one.answer == pytest.approx(float(logits.max() - logits[LABELS.index(other)]), abs=1e-5)

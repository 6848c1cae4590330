"""A student learns what its teacher says: of texts from what is kept, of pictures about the view that it sees."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import draw, make_checkpoint, run_recipe, texts, write_csv
from test_recipe_contract import same_files, stop_after

from graftkit import classifiers, download, teach
from graftkit.adapt import ClassifierAdaptConfig
from graftkit.backbone import BackboneConfig
from graftkit.classifiers import find_classifier, load_classifier
from graftkit.data import DataConfig, load_splits
from graftkit.download import Fetched
from graftkit.errors import Stopped, UserError
from graftkit.feed import Feed
from graftkit.heads import load_classifier as load_headed
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig, Preprocessing
from graftkit.learn import ClassifierTrainConfig, check_ways
from graftkit.losses import CrossEntropy, draw_weights
from graftkit.run import Run
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What the teacher needs of a run; its cache is its own."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    said = []
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        headline="macro_f1",
        settings=SimpleNamespace(resume=False),
        record={"data": {}},
        once=lambda action: action(),
        phase=lambda name: nullcontext(),
        say=lambda text, warning=False: said.append(text),
        said=said,
    )


def make_teacher(folder, kind: str, labels: list[str], seed: int = 1):
    """A classifier of texts that nobody has trained, as its folder."""
    folder.mkdir()
    backbone = BackboneConfig(name=str(make_checkpoint(folder / "bare", kind)))
    tokenizer = load_tokenizer(backbone)
    headed = load_headed(backbone, labels, tokenizer, seed)
    for parameter in headed.model.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    TextClassification(tokenizer, labels).save(folder / "model", headed.model)
    return folder


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    path = write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", texts(60))
    return load_splits(DataConfig(path=str(path)), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT-style teacher with the labels in another order."""
    return make_teacher(tmp_path_factory.mktemp("teacher") / "t", "bert", ["tool", "bird", "fruit"])


def student(checkpoint, splits, kind="roberta"):
    """The task of a student with another tokenizer than the teacher's."""
    return TextClassification(load_tokenizer(BackboneConfig(name=str(checkpoint(kind)))), splits.labels)


def test_what_is_kept_is_what_the_teacher_says_in_the_students_order(run, folder, splits, checkpoint, tmp_path):
    task = student(checkpoint, splits)
    taught = teach.taught(run, task, splits, ClassifierTrainConfig(teacher=str(folder)))
    rows = [splits.train[i] for i in (7, 0, 12, 7)]
    batch = task.collate([task.encode(row, None) for row in rows])
    found = find_classifier(str(folder))
    theirs = load_classifier(found, ImageConfig())
    asked = theirs.task.collate([theirs.task.encode(row, None) for row in rows])
    with torch.no_grad():
        said = theirs.model(**asked.inputs).logits
    assert found.labels == ["tool", "bird", "fruit"] != splits.labels
    wanted = said[:, [found.labels.index(label) for label in splits.labels]]
    assert torch.allclose(taught.ask(batch), wanted, atol=1e-5)
    assert wanted.std() > 0.1

    model = load_headed(BackboneConfig(name=str(checkpoint("roberta"))), splits.labels, task.tokenizer, 0).model.eval()
    task.criterion = CrossEntropy(temperature=3.0, teacher_share=0.25)
    with torch.no_grad():
        mine, alone, together = model(**batch.inputs).logits, task.loss(model, batch), taught.loss(model, batch)
    assert together.item() == pytest.approx(task.criterion(mine, batch.targets["labels"], wanted).item(), rel=1e-5)
    assert alone.item() == pytest.approx(task.criterion(mine, batch.targets["labels"]).item(), rel=1e-5)
    assert abs(together - alone) > 1e-3  # the task itself is not changed
    assert (taught.labels, taught.headline) == (task.labels, task.headline)
    assert run.record["teacher"]["kind"] == "transformers"
    assert any(note.startswith(f"teacher: {folder} (BertForSequenceClassification), macro_f1 0.") for note in run.said)
    assert not any(str(tmp_path) in note for note in run.said)  # the report names no folder of the cache


def test_kept_answers_cannot_be_stale(run, folder, splits, checkpoint, tmp_path, monkeypatch):
    asked = []
    predict = teach.predict_rows
    monkeypatch.setattr(teach, "predict_rows", lambda *given: asked.append(1) or predict(*given))
    task = student(checkpoint, splits)

    def times(name=folder, rows=splits.train) -> int:
        """How often the teacher had to be asked about them."""
        teacher = teach.load_teacher(run, task, ClassifierTrainConfig(teacher=str(name)))
        asked.clear()
        teach.kept_answers(run, teacher, rows)
        return len(asked)

    assert (times(), times()) == (1, 0)
    changed = splits.train.map(lambda row, i: {"text": row["text"] + " x" * (i == 3)}, with_indices=True)
    assert times(rows=changed) == 1
    assert times(rows=splits.train.select(range(len(splits.train) - 1, -1, -1))) == 1
    other = make_teacher(tmp_path / "other", "bert", ["tool", "bird", "fruit"], seed=2)
    assert times(other) == 1
    assert times(shutil.copytree(other, tmp_path / "moved")) == 0
    settings = json.loads((other / "model" / "tokenizer_config.json").read_text())
    (other / "model" / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 5}))
    assert times(other) == 1
    network = json.loads((other / "model" / "config.json").read_text())
    (other / "model" / "config.json").write_text(json.dumps(network | {"hidden_act": "relu"}))
    assert (times(other), times(other), times()) == (1, 0, 0)
    for file in (tmp_path / "cache" / "teachers").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    assert (times(), times()) == (1, 0)


def test_a_teacher_of_something_else_is_refused_in_one_line(run, splits, checkpoint, image_checkpoint, tmp_path):
    task = student(checkpoint, splits)

    def refused(name, **more) -> str:
        with pytest.raises(UserError) as caught:
            teach.load_teacher(run, task, ClassifierTrainConfig(teacher=str(name), **more))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    other = make_teacher(tmp_path / "other", "bert", ["tool", "bird", "fish"])
    assert f"{other} lacks 'fruit' and has 'fish', which train lacks" in refused(other)
    fewer = make_teacher(tmp_path / "fewer", "bert", ["tool", "bird"])
    assert refused(fewer).endswith("lacks 'fruit'; a teacher needs the same 3 labels, by name")
    assert "--train.teacher nowhere" in refused("nowhere")
    assert "is a model for" in refused(image_checkpoint("test_resnet"))
    assert "neither texts nor pictures" in refused(checkpoint("bert"))  # without a head


def test_a_teacher_and_views_are_refused_before_anything_is_read(folder):
    adapt = ClassifierAdaptConfig(strategy="head", views=3)
    with pytest.raises(UserError, match=r"--train\.teacher with --adapt\.views"):
        teach.check_costs(adapt, ClassifierTrainConfig(teacher=str(folder)))
    with pytest.raises(UserError, match=r"--train\.teacher nowhere"):
        teach.check_costs(ClassifierAdaptConfig(), ClassifierTrainConfig(teacher="nowhere"))


def test_a_teacher_of_another_kind_is_refused_before_anything_is_read(folder):
    config = ClassifierTrainConfig(teacher=str(folder))
    with pytest.raises(UserError, match="for text-classification, and the student is one for image-classification"):
        check_ways(ClassifierAdaptConfig(), config, task="image-classification")
    check_ways(ClassifierAdaptConfig(), config, task="text-classification")
    gone = ClassifierTrainConfig(teacher="nowhere")
    check_ways(ClassifierAdaptConfig(), gone, task="text-classification", resumed=True)


def test_a_teacher_with_other_labels_is_refused_before_the_backbone_is_looked_for(
    splits, pictures, image_checkpoint, tmp_path, shapes
):
    other = make_teacher(tmp_path / "other", "bert", ["tool", "bird", "fish"])
    rows = write_csv(tmp_path / "rows.csv", texts(60))
    with pytest.raises(UserError, match="lacks 'fruit' and has 'fish'"):
        run_recipe("text_classify", "--backbone.name", "./nowhere", "--data.path", rows, "--train.teacher", other)
    task, network = picture_task(image_checkpoint("convnext"), shapes)
    task.save(tmp_path / "teacher", network)
    words = "--backbone.name", "./nowhere", "--data.path", pictures, "--train.teacher", tmp_path / "teacher"
    with pytest.raises(UserError, match="lacks 'stripes'"):
        run_recipe("image_classify", *words, "--run.out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "warned"), [((), None), (("test",), "rows of test,"), (("dev", "test"), "dev and")]
)
def test_a_teacher_that_may_know_rows_of_test_is_warned_of(run, splits, checkpoint, tmp_path, changed, warned):
    teacher = make_teacher(tmp_path / "teacher", "bert", splits.labels)
    (teacher / "run.json").write_text(json.dumps({"task": "text-classification", "data": splits.facts}))
    hashes = {
        name: facts | {"sha256": facts["sha256"] + "x" * (name in changed)}
        for name, facts in splits.facts["splits"].items()
    }
    run.record["data"] = splits.facts | {"splits": hashes}
    config = ClassifierTrainConfig(teacher=str(teacher))
    teach._tell(run, teach.load_teacher(run, student(checkpoint, splits), config), splits, config)
    warnings = [note for note in run.said if "it may know rows of" in note]
    assert len(warnings) == (warned is not None)
    assert all(warned in warning for warning in warnings)
    run.record["data"] = run.record["data"] | {"sources": {"train": "elsewhere"}}  # other data: nothing can be told
    run.said.clear()
    teach._tell(run, teach.load_teacher(run, student(checkpoint, splits), config), splits, config)
    assert not any("may know" in note for note in run.said)


def test_a_teacher_of_the_hub_is_the_commit_that_a_resumed_run_had(run, folder, splits, checkpoint, monkeypatch):
    asked = []

    def fetch(name, revision=None, **how):
        asked.append(revision)
        return Fetched(folder / "model", revision or download._pins.get((name, None)))

    monkeypatch.setattr(classifiers, "fetch", fetch)
    monkeypatch.setattr(download, "_pins", {})
    before = {"command": "", "seconds": {}, "teacher": {"name": "some/teacher", "commit": "c0ffee", "sha256": "1"}}
    Run.continue_record(run, before)
    assert run.record["teacher"] == before["teacher"]
    config = ClassifierTrainConfig(teacher="some/teacher")
    teacher = teach.load_teacher(run, student(checkpoint, splits), config)
    assert (asked, teacher.found.commit) == ([None, "c0ffee"], "c0ffee")


def test_a_dry_run_asks_the_teacher(run, folder, splits, checkpoint):
    task = student(checkpoint, splits)
    batch = task.collate([task.encode(splits.train[i], None) for i in (3, 1)])
    taught, seconds = teach.tried(run, task, splits, ClassifierTrainConfig(teacher=str(folder)))
    assert taught.ask(batch).shape == (2, 3)
    assert seconds >= 0
    assert "the teacher answers the rows of train and dev" in run.said[-1]
    assert "teacher" not in run.record


# pictures


def picture_task(checkpoint, splits, **image):
    """A task of pictures, and its model with a head that says something."""
    model = load_image_classifier(ImageBackboneConfig(name=str(checkpoint)), ImageConfig(**image), splits.labels, 0)
    for name, parameter in model.headed.model.named_parameters():
        if name in model.headed.head:
            torch.nn.init.normal_(parameter, std=0.3)
    return ImageClassification(model.preprocessing, splits.labels, splits.train, 0), model.headed.model.eval()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    from graftkit.data import ImageDataConfig, load_pictures

    folder = tmp_path_factory.mktemp("shapes")
    for i in range(24):
        shape = ("disc", "square")[i % 2]
        (folder / shape).mkdir(exist_ok=True)
        draw(shape, i).save(folder / shape / f"{i}.png")
    return load_pictures(ImageDataConfig(path=str(folder)), 0)


def test_a_teacher_of_pictures_sees_the_view_of_the_student(run, shapes, image_checkpoint, tmp_path):
    theirs, network = picture_task(image_checkpoint("convnext"), shapes)
    theirs.save(tmp_path / "teacher", network)
    file = tmp_path / "teacher" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.2, 0.3, 0.4]}))
    theirs = load_classifier(find_classifier(str(tmp_path / "teacher")), ImageConfig()).task
    task, _ = picture_task(image_checkpoint("test_resnet"), shapes, mixup=0.4)
    assert theirs.preprocessing.mean != task.preprocessing.mean
    taught = teach.taught(run, task, shapes, ClassifierTrainConfig(teacher=str(tmp_path / "teacher")))
    rows = [shapes.train[i] for i in range(4)]
    batch = task.collate([task.encode(row, np.random.default_rng(i)) for i, row in enumerate(rows)])
    with torch.no_grad():
        wanted = theirs.logits(network, batch)
        plain = theirs.logits(network, theirs.collate([theirs.encode(row, None) for row in rows]))
    assert torch.allclose(taught.ask(batch), wanted, atol=1e-5)
    assert not torch.allclose(wanted, plain, atol=1e-2)
    assert not list((tmp_path / "cache").rglob("*.logits"))
    still, _ = picture_task(image_checkpoint("test_resnet"), shapes, augment="none")
    taught = teach.taught(run, still, shapes, ClassifierTrainConfig(teacher=str(tmp_path / "teacher")))
    assert torch.allclose(taught.ask(batch), plain, atol=1e-5)  # by its own preprocessing, from the files
    assert list((tmp_path / "cache").rglob("*.logits"))


def preprocessing(**facts) -> Preprocessing:
    usual = {"channels": 3, "size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    return Preprocessing(**usual | facts, config=ImageConfig())


def test_pixels_are_made_what_the_teacher_reads():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = teach.as_teacher_reads(pixels, preprocessing(), preprocessing(mean=(0.1,) * 3))
    assert torch.equal(same, pixels)
    assert torch.equal(teach.as_teacher_reads(pixels, preprocessing(), preprocessing(blue_first=True)), pixels.flip(1))
    larger = teach.as_teacher_reads(pixels, preprocessing(), preprocessing(size=(16, 16)))
    assert larger.shape == (2, 3, 16, 16)
    assert 0 <= larger.min() <= larger.max() <= 255
    assert larger.mean() == pytest.approx(pixels.float().mean(), abs=3)
    grey = preprocessing(channels=1)
    assert teach.as_teacher_reads(pixels[:, :1], grey, preprocessing()).shape == pixels.shape


# sampling


def test_two_processes_draw_the_rows_that_one_draws(splits, checkpoint):
    task, chances = student(checkpoint, splits), draw_weights(splits.train["label"])
    lengths = task.lengths(splits.train)

    def updates(process, processes, size, skip=0):
        how = SimpleNamespace(process_index=process, num_processes=processes, device="cpu")
        feed = Feed(task, splits.train, lengths, size, 1, 0, how, chances)
        return list(feed.epoch(1, skip))

    alone = updates(0, 1, 8)
    ids = [splits.train["id"][row] for update in alone for row in update.rows]
    assert len(ids) == len(splits.train) > len(set(ids))
    halves = [updates(process, 2, 4) for process in (0, 1)]
    for update, first, second in zip(alone, *halves, strict=True):
        assert update.rows.tolist() == first.rows.tolist() == second.rows.tolist()
        theirs = sorted(id for half in (first, second) for batch in half.micro_batches for id in batch.ids)
        assert theirs == sorted(update.micro_batches[0].ids)
    assert [update.rows.tolist() for update in updates(0, 1, 8, 3)] == [update.rows.tolist() for update in alone[3:]]


def test_a_row_that_is_drawn_again_is_augmented_again(shapes, image_checkpoint):
    task, _ = picture_task(image_checkpoint("test_resnet"), shapes)
    from graftkit.feed import load_batches

    count = len(shapes.train)
    first, again, other = load_batches(task, shapes.train, [np.array([i]) for i in (2, 2 + count, 3)], (0, 0))
    assert first.ids == again.ids != other.ids
    assert not torch.equal(first.inputs["pixels"], again.inputs["pixels"])


# end to end


def flipped(rows):
    """Every fourth row with the next label."""
    names = ["fruit", "tool", "bird"]
    return [(text, names[(names.index(label) + (i % 4 == 0)) % 3]) for i, (text, label) in enumerate(rows)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint):
    """A teacher that knows its rows, and students of rows of which some have a wrong label."""
    folder = tmp_path_factory.mktemp("taught")
    for name, change in (("right", list), ("wrong", flipped)):
        (folder / name).mkdir()
        for split, count, seed in (("train", 60, 1), ("dev", 18, 2), ("test", 12, 3)):
            write_csv(folder / name / f"{split}.csv", (change if split == "train" else list)(texts(count, seed)))
    words = ["--run.precision", "fp32", "--train.batch_size", 8, "--train.lr", 1e-3, "--train.head_lr", 3e-3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTKIT_CACHE", str(folder / "cache"))
        run_recipe(
            "text_classify", "--backbone.name", checkpoint("bert"), "--data.path", folder / "right",
            "--train.epochs", 14, *words, "--run.out", folder / "teacher",
        )  # fmt: skip
        words += ["--backbone.name", checkpoint("roberta", dropout=0.1), "--data.path", folder / "wrong"]
        words += ["--train.teacher", folder / "teacher", "--train.teacher_share", 1.0, "--train.epochs", 15]
        run_recipe("text_classify", *words, "--run.out", folder / "student")
    return folder, words


@pytest.mark.slow
def test_a_student_follows_its_teacher_and_not_wrong_labels(trained):
    folder, _ = trained
    right, wrong = texts(60, 1), flipped(texts(60, 1))
    student = load_classifier(find_classifier(str(folder / "student")), ImageConfig())
    inputs = student.task.tokenizer([text for text, _ in right], return_tensors="pt", padding=True)
    with torch.no_grad():
        said = [student.task.labels[i] for i in student.model(**inputs).logits.argmax(-1)]
    rows = [i for i in range(60) if right[i][1] != wrong[i][1]]
    assert len(rows) == 15
    assert sum(said[i] == right[i][1] for i in rows) > 2 * sum(said[i] == wrong[i][1] for i in rows)
    record = json.loads((folder / "student" / "run.json").read_text())
    assert record["teacher"]["dev"]["macro_f1"] > 0.5
    assert record["loss"]["teacher"] == str(folder / "teacher")
    assert "Teacher" in (folder / "student" / "report.md").read_text()


def test_a_picture_run_is_taught_and_weighs_its_classes(pictures, image_checkpoint, tmp_path):
    model = load_image_classifier(
        ImageBackboneConfig(name=str(image_checkpoint("convnext"))),
        ImageConfig(size=96),
        ["stripes", "disc", "square"],
        0,
    )
    theirs = ImageClassification(model.preprocessing, ["stripes", "disc", "square"], [], 0)
    theirs.save(tmp_path / "teacher", model.headed.model)
    run_recipe(
        "image_classify", "--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures,
        "--train.teacher", tmp_path / "teacher", "--train.class_weights", "balanced", "--train.max_steps", 2,
        "--image.workers", 0, "--run.precision", "fp32", "--run.out", tmp_path / "run",
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["teacher"]["kind"], record["teacher"]["architecture"]) == (
        "transformers",
        "ConvNextForImageClassification",
    )
    assert record["loss"]["weights"] == pytest.approx({"disc": 31 / 33, "square": 31 / 30, "stripes": 31 / 30})
    assert any("asked in training" in note for note in record["notes"])
    assert "rows of rare labels weigh more" in (tmp_path / "run" / "report.md").read_text()


def test_a_run_that_goes_on_has_the_same_teacher_until_it_needs_none(splits, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    right = make_teacher(tmp_path / "right", "bert", splits.labels)
    other = make_teacher(tmp_path / "other", "bert", splits.labels, seed=2)
    teacher = shutil.copytree(right, tmp_path / "teacher")
    words = ["--backbone.name", checkpoint("roberta"), "--data.path", write_csv(tmp_path / "rows.csv", texts(60))]
    words += ["--train.teacher", teacher, "--train.max_steps", 3, "--run.precision", "fp32"]
    assert run_recipe("text_classify", *words, "--run.dry_run")["updates"] == 3
    assert "dry run: before the first update, the teacher answers" in capsys.readouterr().out
    words += ["--run.out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(Stopped):
            run_recipe("text_classify", *words)
    words += ["--run.resume"]

    shutil.rmtree(teacher)
    with pytest.raises(UserError, match=r"--train\.teacher"):
        run_recipe("text_classify", *words)
    shutil.copytree(other, teacher)
    with pytest.raises(UserError, match=r"not what the run was started with: teacher: ") as caught:
        run_recipe("text_classify", *words)
    assert "\n" not in str(caught.value)
    shutil.rmtree(teacher)
    shutil.copytree(right, teacher)
    run_recipe("text_classify", *words, "--run.until", "dev")
    shutil.rmtree(teacher)
    run_recipe("text_classify", *words)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["teacher"]["name"] == str(teacher)
    assert str(tmp_path / "cache") not in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("update", "plan", "config", "refused"),
    [
        (None, 3, {}, True),
        (2, 3, {}, True),
        (3, 3, {}, False),
        (2, 3, {"patience": 1}, False),  # it may have stopped early
        (2, None, {}, False),  # a run of an earlier version
    ],
)
def test_a_run_that_goes_on_is_told_early_that_its_teacher_is_gone(run, tmp_path, update, plan, config, refused):
    run.folder, run.settings.resume = tmp_path, True
    (tmp_path / "run.json").write_text(json.dumps({} if plan is None else {"plan": {"updates": plan}}))
    if update is not None:
        at = tmp_path / "checkpoints" / f"update-{update:08d}"
        at.mkdir(parents=True)
        (at / "state.json").write_text(json.dumps({"update": update}))
        (at / "optimizer.safetensors").write_bytes(b"")
    gone = ClassifierTrainConfig(teacher=str(tmp_path / "gone"), **config)
    with pytest.raises(UserError, match=r"^--train\.teacher .*gone") if refused else nullcontext():
        teach.check_teacher(run, ["a", "b"], gone)


@pytest.mark.slow
def test_a_taught_run_that_was_stopped_and_resumed_ends_as_one_that_never_stopped(trained, tmp_path, monkeypatch):
    folder, words = trained
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))  # the answers are asked again
    words = [*words, "--run.out", tmp_path / "parts"]
    with monkeypatch.context() as patched:
        stop_after(19, patched)
        with pytest.raises(Stopped, match="after update 19"):
            run_recipe("text_classify", *words)
    run_recipe("text_classify", *words, "--run.resume")
    names = ["model/model.safetensors", "predictions-test.parquet", "log.jsonl", "metrics.json"]
    same_files(folder / "student", tmp_path / "parts", names)


@pytest.mark.slow
def test_a_teacher_and_kept_activations_go_together(trained, tmp_path, monkeypatch):
    """The frozen part need not run, and the losses are those of the plain way."""
    _, words = trained
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    words = [*words, "--adapt.strategy", "head", "--adapt.solver", "sgd", "--train.max_steps", 8]
    losses = []
    for cache in ("auto", "off"):
        run_recipe("text_classify", *words, "--adapt.cache", cache, "--run.out", tmp_path / cache)
        lines = [json.loads(line) for line in (tmp_path / cache / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert list((tmp_path / "cache").rglob("*.rows"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

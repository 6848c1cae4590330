"""Does the model's page tell the truth, and keep what others wrote on it?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from graftkit.errors import UserError
from graftkit.hub.card import Base, read_notes, write_card
from graftkit.report.classification import measure
from graftkit.report.reading import Reading

REPO = "me/my-model"
BASE = Base("org/base-model", "apache-2.0", ["en"])
NOWHERE = Base(None)
LABELS = ["refund", "card_lost", "top_up"]
HOSTILE = ["a|b", "two\nlines", "<script>x</script>", "`tick`", "---", "<!-- graftkit: end -->", "- x: [y"]
FOUND = {
    "rows": 64,
    "max_difference": 1.3e-7,
    "headline": {"name": "macro_f1", "run": 0.91234, "fresh": 0.91234},
    "padded_batch": {"rows": 16, "max_difference": 2.5e-7},
    "beyond_max_length": {"max_difference": 3.5e-7},
    "confusion_matrix": "same",
    "versions": {"transformers": "5.23.0"},
    "redrawn": 2,
}


def make_metrics(labels=LABELS, rows: int = 240, seed: int = 0) -> dict[str, Any]:
    """The metrics of a random classifier that is mostly right, and worst at the first label."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % len(labels)
    logits = rng.normal(size=(rows, len(labels)))
    logits[np.arange(rows), truth] += np.where(truth == 0, 1.0, 3.0)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    records = [
        {"label": labels[i], "prediction": labels[int(row.argmax())], "probabilities": row}
        for i, row in zip(truth, chances, strict=True)
    ]
    reading = Reading(Path(), {}, labels, dict.fromkeys(("dev", "test"), records))
    return {split: measure(reading, split) for split in reading.records}


def make_run(labels=LABELS, **change) -> dict[str, Any]:
    """The record of a run on texts, freed of paths."""
    splits = {
        name: {
            "rows": rows,
            "sha256": f"{name}0123",
            "classes": {label: rows // 3 + i for i, label in enumerate(labels)},
        }
        for name, rows in (("train", 900), ("dev", 100), ("test", 240))
    }
    data = {
        "path": "reviews",
        "subset": None,
        "sources": {"train": "train.csv", "dev": "train.csv", "test": "test.csv"},
        "columns": {"text": "body", "text_pair": None, "label": "kind"},
        "splits": splits,
        "cut_from_train": {"dev": {"share": 0.1, "seed": 0}},
        "dropped": {},
        "repeats_in_train": {"repeated_rows": 0, "texts_with_several_labels": 0},
        "overlaps": {"test in train": 0, "dev in train": 0, "test in dev": 0},
    }
    return {
        "graftkit": "0.1.0",
        "task": "text-classification",
        "headline": "macro_f1",
        "labels": labels,
        "command": "python recipes/text_classify.py --data.path reviews",
        "versions": {"torch": "2.15.0", "transformers": "5.23.0"},
        "git_commit": "abc123",
        "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 23.5, "gpus": []},
        "seed": 7,
        "precision": "bf16",
        "data": data,
        "warnings": [],
        "notes": ["secret/path"],
        "lengths": {"max_length": 512, "truncated_rows": 0, "truncated_share": 0.0, "percentiles": {"100": 93}},
        "adapt": {
            "strategy": "full",
            "description": "everything trains",
            "trained_parameters": 9,
            "total_parameters": 9,
        },
        "backbone": {"name": "org/base-model", "commit": "c0ffee", "architecture": "BertForSequenceClassification"},
        "training": {"updates": 846, "epochs": 3.0, "rows_per_update": 32, "best": {"update": 846, "score": 0.9}},
        "seconds": {"train": 61.0, "total": 75.0},
        "snippet": f'classify = pipeline("text-classification", "{REPO}")',
    } | change


RUN, METRICS = make_run(), make_metrics()


def card(notes: str | None = None, previous: str | None = None, base: Base = BASE, run=RUN, metrics=METRICS) -> str:
    return write_card(REPO, run, metrics, FOUND, notes, previous, base)


def front(page: str) -> dict[str, Any]:
    return yaml.safe_load(page.split("---\n")[1])


def chapter(page: str, heading: str) -> str:
    return page.split(f"## {heading}\n")[1].split("\n## ")[0]


def with_data(**change) -> dict[str, Any]:
    return make_run(data=RUN["data"] | change)


def test_what_may_be_done_with_its_probabilities_is_told():
    share = {"level": 0.95, "method": "clopper-pearson"}
    found = {
        "alpha": 0.1,
        "sets": {"threshold": 0.125, "covered": {"value": 0.91, "low": 0.87, "high": 0.94, **share}, "mean_size": 1.42},
        "abstention": {
            "threshold": 0.84,
            "answered": {"value": 0.6, "low": 0.53, "high": 0.66, **share},
            "wrong": {"value": 0.05, "low": 0.02, "high": 0.1, **share},
        },
    }
    known = make_run(calibration={"temperature": 1.234, "rows": 100, "reason": None})
    told = chapter(card(run=known, metrics=METRICS | {"probabilities": found}), "Where it is weakest")
    for words in (
        "divided by 1.23,",
        "100 dev rows",
        "of 0.125 and more",
        "for 90% of rows",
        "0.91 (95% interval 0.87",
    ):
        assert words in told
    for words in ("1.4 labels each", "of 0.84 and more", "at most 10%", "0.60 (95% interval", "0.05 (95% interval"):
        assert words in told
    assert "divided by" not in chapter(card(), "Where it is weakest")


# metadata


def test_the_metadata_are_what_the_hub_reads():
    page = card()
    data = ModelCard(page).data
    assert data.to_dict() == ModelCardData(**front(page)).to_dict() == front(page)
    assert (data.base_model, data["base_model_relation"], data.license) == ("org/base-model", "finetune", "apache-2.0")
    assert (data.library_name, data.pipeline_tag, data.language) == ("transformers", "text-classification", ["en"])
    assert data.tags == ["graftkit", "full"]
    assert data.metrics == ["f1", "accuracy", "matthews_correlation"]
    assert data.datasets is None


def test_the_model_index_has_every_score_of_the_test_rows():
    name, results = model_index_to_eval_results(front(card())["model-index"])
    assert name == "my-model"
    assert [result.metric_value for result in results] == list(METRICS["test"]["scores"].values())
    assert {(r.dataset_name, r.dataset_type, r.dataset_split, r.task_type) for r in results} == {
        ("reviews", "reviews", "test", "text-classification")
    }
    kinds = {result.metric_name: (result.metric_type, result.metric_args) for result in results}
    assert kinds["Macro F1"] == ("f1", {"average": "macro"})
    assert kinds["Weighted F1"] == ("f1", {"average": "weighted"})
    assert kinds["Matthews correlation"] == ("matthews_correlation", None)
    assert kinds["Log loss"] == ("log_loss", None)


def test_what_is_not_known_is_left_out():
    assert (
        not {"base_model", "base_model_relation", "license", "language", "datasets"} & front(card(base=NOWHERE)).keys()
    )


@pytest.mark.parametrize(
    ("path", "subset", "test", "cut", "expected"),
    [
        ("org/data", None, "org/data (test)", False, ("org/data", "org/data", None, "test")),
        ("org/data", "en", "org/data/en (validation)", False, ("org/data", "org/data", "en", "validation")),
        ("org/data", None, "org/data (train)", True, ("org/data", "org/data", None, None)),
        ("My Data.csv", None, "My Data.csv", True, (None, "my-data-csv", None, None)),
        ("data (1)", None, "data (1)/test.csv", False, (None, "data-1", None, "test")),
        ("demo", None, "demo (test)", False, (None, "demo", None, "test")),
        (None, None, "test.csv", False, (None, "test-csv", None, "test")),
    ],
)
def test_the_data_are_named_as_the_hub_does_only_where_they_come_from_there(path, subset, test, cut, expected):
    cuts = {"test": {"share": 0.1, "seed": 0}} if cut else {}
    page = card(run=with_data(path=path, subset=subset, sources={"train": test, "test": test}, cut_from_train=cuts))
    result = model_index_to_eval_results(front(page)["model-index"])[1][0]
    hub_id, kind, config, split = expected
    assert front(page).get("datasets") == ([hub_id] if hub_id else None)
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (kind, config, split)
    assert (f"https://huggingface.co/datasets/{hub_id}" in page) is (hub_id is not None)


@pytest.mark.parametrize(
    ("task", "images", "relation", "library"),
    [
        ("text-classification", None, "finetune", "transformers"),
        ("text-classification", None, "adapter", "peft"),
        ("image-classification", {"crop_pct": 0.875, "size": [32, 32], "crop_mode": "center"}, "finetune", "timm"),
        ("image-classification", {"crop_pct": None, "size": [32, 32]}, "finetune", "transformers"),
    ],
)
def test_the_library_is_the_one_that_loads_it(task, images, relation, library):
    page = card(run=make_run(task=task, images=images), base=Base("org/base", relation=relation))
    assert (front(page)["library_name"], front(page)["pipeline_tag"]) == (library, task)
    assert front(page)["base_model_relation"] == relation
    packages = chapter(page, "How to use it").split("`")[1]
    assert library in packages
    assert ("torchvision" in packages) is (task == "image-classification")


# what the page says


def test_it_says_what_the_run_says():
    page = card()
    headline = METRICS["test"]["headline"]
    summary = page.split("# my-model\n\n")[1].split("\n")[0]
    assert f"**{headline['value']:.2f} (95% interval {headline['low']:.2f} to {headline['high']:.2f})**" in summary
    assert "on 240 test rows that it was not trained on" in summary
    assert "huggingface.co/org/base-model" in summary
    assert f"```python\n{RUN['snippet']}\n```" in chapter(page, "How to use it")
    assert "| **all** | **900** | **100** | **240** |" in chapter(page, "Data")
    assert "dev was cut from train: 10% of it, seed 0" in chapter(page, "Data")
    assert "No text stands twice" in chapter(page, "Data")
    training = chapter(page, "Training")
    for fact in ("everything trains", "a processor, 2 cores", "bf16", "1 min 15 s in all, of which 1 min 1 s"):
        assert fact in training
    assert "Energy" not in page
    again = chapter(page, "How to make it again")
    for fact in ("--data.path reviews", "torch 2.15.0", "graftkit 0.1.0", "Seed: 7", "abc123", "c0ffee", "train0123"):
        assert fact in again
    assert "secret" not in page  # notes of a run name folders


def test_rows_of_test_that_stand_in_train_are_owned_up_to():
    run = with_data(overlaps={"test in train": 20, "dev in train": 0, "test in dev": 0})
    page = card(run=run | {"warnings": ["20 of 240 rows of test also stand in train"]})
    assert "240 test rows, of which 20 stand in train too, which flatters the score." in page
    assert "**Warning:** 20 of 240 rows" in chapter(page, "Data")
    assert "not trained on" not in page
    assert "No text stands twice" not in page


def test_random_weights_are_no_fine_tune():
    run = make_run(backbone={"name": "resnet10t", "pretrained": False})
    assert "A model trained from random weights (resnet10t) that sorts" in card(run=run, base=NOWHERE)


def test_limits_follow_from_the_run():
    text = chapter(card(), "What it is for, and what not")
    for fact in ("one of the 3 whatever", "longest has 93 tokens", "first 512 tokens", "base model names en", "people"):
        assert fact in text
    images = {"crop_pct": 0.875, "size": [224, 224], "crop_mode": "center"}
    picture = chapter(card(run=make_run(task="image-classification", images=images)), "What it is for, and what not")
    assert "224 x 224 pixels" in picture
    assert "the middle, 88%" in picture
    assert "language" not in picture


def test_the_weakest_is_named():
    text = chapter(card(), "Where it is weakest")
    assert text.split("Lowest F1: ")[1].startswith("“refund”")
    counts = np.array(METRICS["test"]["confusion"]["counts"])
    rows = int((counts - np.diag(np.diag(counts))).max())
    assert re.search(rf"\| ---: \|\n\| refund \| \w+ \| {rows} \|", text)
    assert "always answering with the most frequent class would reach 0.33" in text
    assert f"off by {METRICS['test']['scores']['calibration_error']:.2f} on average" in text
    cut = RUN["lengths"] | {"truncated_share": 0.1}
    assert "10% of the training texts were too long" in chapter(card(run=make_run(lengths=cut)), "Where it is weakest")


def test_classes_with_few_test_rows_or_none_are_told():
    metrics = make_metrics(rows=30)
    assert "3 classes have fewer than 20 test rows" in card(metrics=metrics)
    metrics["test"]["per_class"][2]["support"] = 0
    assert "1 class has no test row" in card(metrics=metrics)


def test_of_many_classes_it_shows_the_ten_that_matter():
    labels = [f"kind{i}" for i in range(30)]
    page = card(run=make_run(labels), metrics=make_metrics(labels, rows=900))
    assert "and 20 more" in chapter(page, "What it is for, and what not")
    lines = [line for line in chapter(page, "Data").splitlines() if line.startswith("| kind")]
    assert [line.split(" | ")[0] for line in lines] == [f"| kind{i}" for i in range(10)]  # the fewest rows
    assert "| **all** | **900** |" in page
    lines = [line for line in chapter(page, "Scores").splitlines() if line.startswith("| kind")]
    weakest = sorted(line["f1"] for line in make_metrics(labels, rows=900)["test"]["per_class"])[:10]
    assert [line.split(" | ")[3] for line in lines] == [f"{f1:.2f}" for f1 in weakest]
    assert "10 weakest of 30 classes; [run/report.md](run/report.md) has all" in page
    assert len(page.splitlines()) < 220


def test_the_check_is_told_with_its_figures():
    text = chapter(card(), "How these files were checked")
    for fact in ("64 test rows, the longest", "transformers 5.23.0", "is 1.3e-07", "macro F1 of these rows: 0.9123"):
        assert fact in text
    for fact in (
        "16 rows in one padded batch: the largest difference is 2.5e-07",
        "3.5e-07",
        "2 of these pictures were given as graftkit reads them",
    ):
        assert fact in text
    pictures = write_card(
        REPO,
        make_run(task="image-classification"),
        METRICS,
        FOUND | {"beyond_max_length": None, "redrawn": 0},
        None,
        None,
        BASE,
    )
    for absent in ("longest among", "padded", "longer than it reads", "left out"):
        assert absent not in chapter(pictures, "How these files were checked")


def test_hostile_names_break_nothing():
    run = make_run(HOSTILE, command="python x.py '\n<!-- graftkit: end -->\n```\n'")
    run["data"]["path"] = "a: [b|c]\n---\n"
    page = card(run=run, metrics=make_metrics(HOSTILE))
    assert ModelCard(page).data.eval_results[0].dataset_name == "a: [b|c]\n---\n"
    assert card(run=run, metrics=make_metrics(HOSTILE), previous=page) == page
    assert "<script>" not in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    by_class = chapter(page, "Scores").split("| Class |")[1]
    assert by_class.count("\n| ") == len(HOSTILE) + 1  # and the rule below the header


# what others wrote

HUB_MADE = "---\nlicense: mit\n---\n"
BY_HAND = "---\ntags:\n- mine\nwidget:\n- text: hello\nversion: 1.10\nanswer: no\n---\n# My words\r\n\r\nbelow  \n\n\n"
NOTES = """\
---
license: cc-by-4.0
language: no
authors: [me]
tags: [bank]
datasets: org/data
---

# Notes

  as written
"""
PREVIOUS = {
    "none": None,
    "empty": "",
    "made by the Hub": HUB_MADE,
    "written by hand": BY_HAND,
    "without front matter": "# Mine\nno newline at its end",
    "with a mark of its encoding": "\ufeff---\nlicense: mit\n---\nmine\n",
    "an empty front matter": "---\n---\nmine\n",
    "notes alone": "above\n\n<!-- notes: begin -->\n\nold notes\n\n<!-- notes: end -->\n\nbelow",
}


@pytest.mark.parametrize(
    "notes", [None, NOTES, "only words", "---\nlicense: mit\n---\n"], ids=["no", "full", "words", "data"]
)
@pytest.mark.parametrize("previous", PREVIOUS.values(), ids=PREVIOUS)
@pytest.mark.parametrize("base", [BASE, NOWHERE], ids=["base", "folder"])
def test_a_second_push_changes_nothing(base, previous, notes):
    first = card(notes, previous, base)
    assert card(notes, first, base) == first
    assert card(None, first, base) == first  # the notes stay until they are given again


def test_words_outside_our_part_stay_byte_for_byte():
    first = card(previous=BY_HAND)
    mine = BY_HAND.split("---\n", 2)[2]
    assert first.split("---\n", 2)[2].startswith(mine + "<!-- graftkit: begin -->")
    begin, end = first.index("<!-- graftkit: begin -->"), first.index("<!-- graftkit: end -->")
    edited = f"{first[:begin]}above\r\n{first[begin:end]}<!-- graftkit: end -->\r\n\tbelow <b>\r\n"
    again = card("my notes", edited, run=make_run(seed=8))
    before, _, rest = again.partition("<!-- graftkit: begin -->")
    assert before == edited.partition("<!-- graftkit: begin -->")[0]
    ours, _, after = rest.partition("<!-- graftkit: end -->")
    assert "Seed: 8" in ours
    assert "Seed: 7" not in again
    assert after == "\n\n<!-- notes: begin -->\n\nmy notes\n\n<!-- notes: end -->\n\tbelow <b>\r\n"


def test_fields_that_we_do_not_write_stay_as_they_were_written():
    page = card(previous=BY_HAND)
    assert "\nversion: 1.10\nanswer: no\n" in page
    assert front(page)["widget"] == [{"text": "hello"}]


def test_our_fields_are_renewed():
    old = card(run=make_run(adapt=RUN["adapt"] | {"strategy": "lora"}), base=Base("org/old", "mit", relation="adapter"))
    old = old.replace("tags:\n", "tags:\n- mine\n")
    new = front(card(previous=old, base=BASE))
    assert (new["base_model"], new["base_model_relation"], new["license"]) == (
        "org/base-model",
        "finetune",
        "apache-2.0",
    )
    assert new["library_name"] == "transformers"
    assert new["tags"] == ["graftkit", "full", "mine"]
    assert "base_model" not in front(card(previous=old, base=NOWHERE))


@pytest.mark.parametrize(
    ("notes", "previous", "base", "expected"),
    [
        (None, HUB_MADE, NOWHERE, "mit"),
        (None, HUB_MADE, BASE, "apache-2.0"),
        ("---\nlicense: cc0-1.0\n---\n", HUB_MADE, BASE, "cc0-1.0"),
        ("---\nlicense: cc0-1.0\n---\n", None, NOWHERE, "cc0-1.0"),
    ],
)
def test_a_license_of_the_user_wins(notes, previous, base, expected):
    assert front(card(notes, previous, base))["license"] == expected


def test_the_name_of_another_license_goes_with_it():
    named = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n"
    assert front(card(previous=named, base=NOWHERE))["license_name"] == "mine"
    assert front(card(previous=named, base=Base("org/x", "other")))["license_name"] == "mine"
    assert not {"license_name", "license_link"} & front(card(previous=named, base=BASE)).keys()


def test_the_notes_and_their_metadata_are_merged_and_stay():
    page = card(NOTES)
    assert "\nlanguage: no\n" in page  # Norwegian, not false
    assert (front(page)["license"], front(page)["authors"]) == ("cc-by-4.0", ["me"])
    assert (front(page)["tags"], front(page)["datasets"]) == (["graftkit", "full", "bank"], ["org/data"])
    later = card(None, page, run=make_run(seed=8))
    assert front(later) == front(page)
    assert "Seed: 8" in later
    part = later.split("<!-- notes: begin -->")[1].split("<!-- notes: end -->")[0]
    assert part.endswith("-->\n\n# Notes\n\n  as written\n\n")


def test_notes_that_are_given_again_replace_the_old_ones():
    page = card("---\nauthors: [you]\n---\nother words\n", card(NOTES, previous=BY_HAND))
    assert "as written" not in page
    assert "\n\nother words\n\n<!-- notes: end -->" in page
    assert (front(page)["authors"], front(page)["license"]) == (["you"], "apache-2.0")
    assert front(page)["tags"] == ["graftkit", "full", "mine"]
    assert "datasets" not in front(page)
    assert "authors" not in front(card("no metadata", page))


def test_what_was_changed_on_the_page_is_newer_than_the_notes():
    page = card(NOTES)
    header, _, rest = page.partition("---\n")[2].partition("---\n")
    edited = f"---\n{header.replace('cc-by-4.0', 'mit').replace('authors: [me]', '')}---\n{rest}"
    assert "authors" in front(page)
    assert front(card(None, edited))["license"] == "mit"
    assert "authors" not in front(card(None, edited))


def test_a_comment_in_the_notes_is_no_metadata_of_theirs():
    page = card("words\n\n<!-- metadata\nlicense: gpl: 3\n-->\n")
    assert front(card(None, page)) == front(card())


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (
            "---\nlicense: mit\ntags: a: b\n---\n",
            "--hub.card NOTES, line 3: not valid YAML: mapping values are not allowed",
        ),
        ("---\ndate: 2024-13-01\n---\n", "--hub.card NOTES, line 2: not valid YAML: month must be in 1..12"),
        ("---\n- a list\n---\n", "--hub.card NOTES, line 2: not valid YAML for metadata: no `name: value`"),
        ("---\nlicense: mit\n# Notes\n", "--hub.card NOTES: its front matter opens with --- and does not end"),
        ("---\nmetrics: [f1]\nbase_model: x\n---\n", "--hub.card NOTES: base_model, metrics in its front matter"),
        ("---\nx: a --> b\n---\n", "--hub.card NOTES: --> in its front matter"),
        ("words\n<!-- graftkit: end -->\n", "--hub.card NOTES, line 2: <!-- graftkit: end --> is how"),
        (b"\xff\xfe", "--hub.card NOTES is not UTF-8"),
        (None, "--hub.card NOTES cannot be read: No such file or directory; name a Markdown file"),
    ],
)
def test_notes_that_cannot_be_merged_are_refused_when_they_are_read(tmp_path: Path, notes, message):
    path = tmp_path / "notes.md"
    if notes is not None:
        path.write_bytes(notes if isinstance(notes, bytes) else notes.encode())
    with pytest.raises(UserError) as caught:
        read_notes(str(path))
    assert str(caught.value).startswith(message.replace("NOTES", str(path)))
    assert len(str(caught.value).splitlines()) == 1
    if isinstance(notes, str):
        with pytest.raises(UserError, match=r"^--hub\.card"):
            card(notes)


def test_notes_are_read_whole(tmp_path: Path):
    path = tmp_path / "notes.md"
    path.write_bytes(b"\xef\xbb\xbf" + NOTES.encode())
    assert read_notes(str(path)) == NOTES
    assert "a marker `<!-- graftkit: end -->` in a line" in card("a marker `<!-- graftkit: end -->` in a line")


MARKED = "<!-- graftkit: begin -->\nx\n<!-- graftkit: end -->\n"


@pytest.mark.parametrize(
    ("previous", "message"),
    [
        ("---\nlicense: mit\nx: [a\n---\n", "line 4: not valid YAML"),
        ("---\nlicense: mit\n", "its front matter opens with ---"),
        ("mine\n<!-- graftkit: begin -->\nx\n\nmore of mine", "its markers (lines 2) are not one pair"),
        (MARKED + "mine\n" + MARKED, "its markers (lines 1, 3, 5, 7) are not"),
        ("<!-- graftkit: begin -->\n<!-- notes: begin -->\n<!-- graftkit: end -->\n<!-- notes: end -->", "its markers"),
        ("<!-- notes: begin -->\n\n<!-- metadata\na: b: c\n-->\n<!-- notes: end -->", "line 4: not valid YAML"),
    ],
)
def test_a_broken_card_of_the_repository_is_refused(previous, message):
    with pytest.raises(UserError) as caught:
        card(previous=previous)
    assert str(caught.value).startswith("the card that me/my-model has")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1

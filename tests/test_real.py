"""On real data and a real checkpoint: what the documents claim."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import assets, run_recipe
from scipy.stats import t as student_t

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_spam_is_found_after_one_epoch(tmp_path):
    """MiniLM on sms_spam, full, one epoch: macro F1 of at least 0.95, also without test rows that stand in train."""
    folder = assets() / "data" / "sms_spam"
    metrics = run_recipe("text_classify", "--data.path", folder, "--train.epochs", 1, "--run.out", tmp_path / "run")
    headline = metrics["test"]["headline"]
    assert headline["name"] == "macro_f1"
    assert headline["value"] >= 0.95
    with open(folder / "train.csv", encoding="utf-8") as file:
        known = {row["text"] for row in csv.DictReader(file)}
    texts = pq.read_table(tmp_path / "run" / "rows-test.parquet").column("text").to_pylist()
    table = pq.read_table(tmp_path / "run" / "predictions-test.parquet").to_pandas()
    unseen = np.array([text not in known for text in texts])

    from sklearn.metrics import f1_score

    clean = f1_score(table["label"][unseen], table["prediction"][unseen], average="macro")
    print(json.dumps({"test": headline, "without rows of train": clean, "rows": int(unseen.sum())}))
    assert clean >= 0.95


CHECKPOINTS = {"mobilenetv2_100.imagenet": 0.967, "mobilenetv1_100.imagenet": 0.971}  # a probe on pooled features
FULL = ()  # the recipe's own settings
HEAD = ("--adapt.strategy", "head", "--adapt.solver", "sgd", "--image.augment", "none")


def flowers(folder, checkpoint: str, *words) -> list[float]:
    """Test accuracy of three seeds; says their mean and its interval (Student's t)."""
    found = []
    for seed in range(3):
        command = [
            "--data.path",
            assets() / "data" / "flowers12",
            "--backbone.name",
            assets() / "checkpoints" / checkpoint,
        ]
        command += ["--image.cache", "--run.seed", seed, "--run.out", folder / f"{checkpoint}-{seed}", *words]
        found.append(run_recipe("image_classify", *command, "--run.overwrite")["test"]["scores"]["accuracy"])
    half = student_t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5
    print(json.dumps({"checkpoint": checkpoint, "words": list(map(str, words)), "accuracy": found}))
    print(f"mean {np.mean(found):.3f}, 95% interval {np.mean(found) - half:.3f} to {np.mean(found) + half:.3f}")
    return found


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_flowers_are_told_apart(tmp_path, checkpoint, monkeypatch):
    """Means over three seeds, of the head alone and of everything; from scratch, the same network is far below."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    assert np.mean(flowers(tmp_path, checkpoint, *HEAD)) >= 0.95
    full = np.mean(flowers(tmp_path, checkpoint, *FULL))
    assert full >= 0.95
    assert np.mean(flowers(tmp_path, checkpoint, *FULL, "--backbone.pretrained", "false")) < full - 0.2

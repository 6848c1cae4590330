"""Are wrong labels found, and which rows are nearly the same?

    python benchmarks/label_quality.py
    python benchmarks/label_quality.py --pairs

Flips 5% of the labels of real data (to any other label, each as likely, at random by the seed), looks at them as an
audit does (`graftkit.metrics.label_quality`, on the features of the pretrained checkpoint), and says how well the
flipped rows rank: the area under the ROC curve, and the share of flipped rows among the first 5%. All rows of all
splits are looked at, banking77 and sms_spam with the demo's MiniLM, flowers12 with mobilenetv2_100.imagenet, from the
folder of GRAFTKIT_ASSETS (or ../shared). Labels that are wrong in the data themselves count against it. `margin` ranks
by the label's probability less that of the likeliest other, in place of the label's probability.

--pairs says instead how alike pairs of rows are that share most of their words (Jaccard index of 0.6 and more), or bear
two labels, by their cosine: from this `audit.ALIKE` was chosen. (Of pictures the words are those of their paths: all.)
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from accelerate import Accelerator
from rounds import ASSETS

from graftkit.audit import ALIKE, LOADERS, MOST
from graftkit.features import pooled_features
from graftkit.metrics import label_quality as quality

CHECKPOINT = str(ASSETS / "checkpoints" / "mobilenetv2_100.imagenet")
DATA = {
    "sms_spam": ("text-classification", "demo"),
    "banking77": ("text-classification", "demo"),
    "flowers12": ("image-classification", CHECKPOINT),
}
COSINES = (0.8, 0.85, 0.9, 0.95, 0.98, 1.01)


def load(name: str) -> tuple[np.ndarray, np.ndarray, list[str], float]:
    """Features (rows, features), labels (rows,), texts (or paths), and the seconds that the features took."""
    task_name, backbone = DATA[name]
    settings: dict[str, Any] = {"data": {"path": str(ASSETS / "data" / name)}, "backbone": {"name": backbone}}
    splits, load_task = LOADERS[task_name](settings | {"image": {}, "run": {"seed": 0}})
    task, headed, lengths = load_task(splits)
    place = {label: i for i, label in enumerate(task.labels)}
    started, accelerator = time.perf_counter(), Accelerator(cpu=True)
    rows = {split: getattr(splits, split) for split in MOST}
    features = [pooled_features(accelerator, task, headed, part, lengths[split]) for split, part in rows.items()]
    seconds = time.perf_counter() - started
    labels = [place[label] for part in rows.values() for label in part["label"]]
    column = "text" if task_name.startswith("text") else "path"
    return np.concatenate(features), np.array(labels), [t for part in rows.values() for t in part[column]], seconds


def flipped(features: np.ndarray, truth: np.ndarray, share: float, seed: int) -> dict[str, float]:
    """How well flipped labels are found."""
    from sklearn.metrics import roc_auc_score

    rng, classes, count = np.random.default_rng(seed), truth.max() + 1, round(share * len(truth))
    wrong = np.isin(np.arange(len(truth)), rng.permutation(len(truth))[:count])
    labels = np.where(wrong, (truth + rng.integers(1, classes, len(truth))) % classes, truth)
    started = time.perf_counter()
    groups = quality.neighbours(features, np.ones(len(truth), bool), ALIKE).groups
    probabilities = quality.out_of_fold(features, labels, classes, groups, seed=seed)
    confident = quality.confident_classes(probabilities, labels)
    joint = quality.estimated_joint(quality.confident_joint(confident, labels, classes), labels)
    seconds, suspect = time.perf_counter() - started, (confident >= 0) & (confident != labels)
    score = quality.self_confidence(probabilities, labels)
    others = np.where(np.arange(classes) == labels[:, None], -np.inf, probabilities).max(axis=1)
    found = {"agreement": float((probabilities.argmax(axis=1) == labels).mean())}
    found |= {"estimated": float(1 - np.trace(joint)), "suspects": int(suspect.sum())}
    if count:
        found |= {"auroc": roc_auc_score(wrong, -score), "auroc_margin": roc_auc_score(wrong, others - score)}
        found |= {"precision": wrong[np.argsort(score)[:count]].mean()}
        found |= {"precision_margin": wrong[np.argsort(score - others)[:count]].mean()}
        found |= {"precision_of_suspects": wrong[suspect].mean(), "recall_of_suspects": suspect[wrong].mean()}
    return found | {"seconds": seconds}


def alike(features: np.ndarray, labels: np.ndarray, texts: list[str], most: int = 5000) -> Iterator[dict[str, Any]]:
    """Of pairs of rows that are not the same text, by cosine: how many, and what share bears two labels or is one."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:most])
    units = quality.standardised(features[chosen])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    words = [set(re.findall(r"[a-z]+", texts[i].lower())) for i in chosen]
    ones, others = np.nonzero(np.triu(units @ units.T, 1) >= COSINES[0])
    cosines = (units[ones] * units[others]).sum(axis=1)
    for low, high in pairwise(COSINES):
        here = [
            (i, j)
            for i, j, cosine in zip(ones, others, cosines, strict=True)
            if low <= cosine < high and texts[chosen[i]] != texts[chosen[j]]
        ]
        shared = [len(words[i] & words[j]) / max(1, len(words[i] | words[j])) >= 0.6 for i, j in here]
        two = [labels[chosen[i]] != labels[chosen[j]] for i, j in here]
        facts = {"cosine from": low, "pairs": len(here)}
        yield facts | ({"two labels": np.mean(two), "most words shared": np.mean(shared)} if here else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are flipped")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", action="store_true", help="look at pairs of rows instead")
    asked = parser.parse_args()
    for name in asked.data:
        features, labels, texts, seconds = load(name)
        print(json.dumps({"data": name, "rows": len(labels), "seconds of features": round(seconds, 1)}), flush=True)
        if asked.pairs:
            found = list(alike(features, labels, texts))
        else:
            runs = [flipped(features, labels, asked.share, seed) for seed in range(asked.seeds)]
            found = [
                {"flipped": 0, **flipped(features, labels, 0.0, 0)},
                *({"flipped": asked.share, **r} for r in runs),
            ]
        for facts in found:
            print(json.dumps({name: round(float(value), 3) for name, value in facts.items()}), flush=True)


if __name__ == "__main__":
    main()

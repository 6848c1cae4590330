"""What would a linear probe score on other outputs of the network than its own head reads?

    python benchmarks/probes.py

Of banking77 (GRAFTKIT_ASSETS or ../shared) through MiniLM (demo extra), in fp32: the pooler's output, which the plain
class reads and --adapt.strategy head exports; the first token; and the mean of the tokens, which no plain class reads,
so these two are probes only. Each is solved as `graftkit.solve` does, its strength chosen on dev.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import numpy as np
from lp_ft import load
from rounds import ROOT

from graftkit.backbone import BackboneConfig
from graftkit.data import Splits
from graftkit.evaluate import predict_rows
from graftkit.heads import load_classifier
from graftkit.linear_head import choose_strength
from graftkit.metrics import classification
from graftkit.run import RunConfig, open_run
from graftkit.solve import make_problem
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer

PROBES = {"pooler": "the pooler's output", "first": "the first token", "mean": "the mean of the tokens"}


class Outputs(TextClassification):
    """The task, with what the backbone says of a row as its record."""

    def predict(self, model: Any, batch: Any) -> list[dict[str, Any]]:
        """Truth, and the three vectors of each row."""
        said = model.base_model(**batch.inputs)
        real = batch.inputs["attention_mask"][:, :, None]
        found = {
            "pooler": said.pooler_output,
            "first": said.last_hidden_state[:, 0],
            "mean": (said.last_hidden_state * real).sum(1) / real.sum(1),
        }
        labels = [self.labels[i] for i in batch.targets["labels"].tolist()]
        return [
            {"label": label} | {name: x[i].cpu().numpy() for name, x in found.items()} for i, label in enumerate(labels)
        ]


def read(seed: int, rows: int | None) -> tuple[TextClassification, Splits, dict[str, list[dict[str, Any]]]]:
    """The task, the rows, and the records of each split."""
    sys.path.insert(0, str(ROOT / "recipes"))
    from text_classify import Config

    with tempfile.TemporaryDirectory() as folder:
        run = open_run("text_classify", Config(run=RunConfig(out=folder, seed=seed, dry_run=True)))
        splits = load(seed, rows)
        tokenizer = load_tokenizer(BackboneConfig())
        task = Outputs(tokenizer, splits.labels)
        model = load_classifier(BackboneConfig(), splits.labels, tokenizer, seed).model
        names = ("train", "dev", "test")
        every = {name: getattr(splits, name) for name in names}
        found = {n: predict_rows(run.accelerator, task, model, part, task.lengths(part)) for n, part in every.items()}
    return task, splits, found


def probe(task: TextClassification, found: dict[str, list[dict[str, Any]]], name: str) -> str:
    """A line of the table."""
    x = {split: np.stack([record[name] for record in records]) for split, records in found.items()}
    truth = {split: [record["label"] for record in records] for split, records in found.items()}
    start, solution = time.perf_counter(), []
    problem = make_problem(task, x["train"], truth["train"], bias=True)

    def score(split: str, which: str) -> float:
        logits = (x[split] @ solution[0] + solution[1]).astype(np.float32)
        chances = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        columns = {"prediction": [task.labels[i] for i in logits.argmax(1)], "probabilities": list(chances)}
        rows = zip(truth[split], columns["prediction"], columns["probabilities"], strict=True)
        records = [{"label": label, "prediction": said, "probabilities": chance} for label, said, chance in rows]
        return classification.scores(*classification.arrays(records, task.labels))[which]

    def ask(strength: float) -> tuple[float, float]:
        solution[:] = problem.solve(strength, exact=False)
        return score("dev", "macro_f1"), score("dev", "log_loss")

    _, strength = choose_strength(ask, len(truth["dev"]), lower=False)
    solution[:] = problem.solve(strength, exact=True)
    seconds = time.perf_counter() - start
    scores = f"{score('dev', 'accuracy'):.4f} | {score('test', 'accuracy'):.4f}"
    return f"| {PROBES[name]} | {strength:.3g} | {seconds:.1f} | {scores} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="which rows of train are dev")
    parser.add_argument("--rows", type=int, help="at most so many training rows, for a quick look")
    given = parser.parse_args()
    task, _, found = read(given.seed, given.rows)
    print("| probe of | L2 | seconds to solve | dev accuracy | test accuracy |\n|---|---:|---:|---:|---:|")
    for name in PROBES:
        print(probe(task, found, name), flush=True)


if __name__ == "__main__":
    main()

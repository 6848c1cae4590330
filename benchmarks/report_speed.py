"""How long does a report of many rows take, and how much memory?

    python benchmarks/report_speed.py

Makes the tables of a run (by default 100,000 test rows of 150 classes, 10,000 dev rows, two baselines, a temperature),
and times `write_report` on them in a process of its own: seconds by the clock, seconds of processor time, and the peak
of its memory. All intervals are included, those of classes too. With --groups, rows belong to so many groups, and
intervals draw whole groups. The aim: under 20 s and 2 GB on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from graftkit.report.tables import table_hashes, write_baselines, write_measures, write_predictions, write_rows

TIMED = """
import resource, sys, time
from pathlib import Path
started, used = time.perf_counter(), time.process_time()
from graftkit.report import write_report
write_report(Path(sys.argv[1]))
seconds, processor = time.perf_counter() - started, time.process_time() - used
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, of KiB
print(f"{seconds:.1f} s, of a processor {processor:.1f} s, {peak:.2f} GiB")
"""


def make_tables(folder: Path, test_rows: int, dev_rows: int, classes: int, groups: int | None) -> None:
    """A run's folder of a model that is right on about 85% of its rows, with texts."""
    labels = [f"class_{place:03}" for place in range(classes)]
    for seed, (split, rows) in enumerate((("dev", dev_rows), ("test", test_rows))):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, classes, rows)
        logits = rng.normal(size=(rows, classes)).astype(np.float32)
        logits[np.arange(rows), truth] += 3.8
        exponents = np.exp(logits)
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        ids = [f"{split}-{place}" for place in range(rows)]
        chosen = logits.argmax(axis=1)
        losses = -np.log(probabilities[np.arange(rows), truth])
        fields = zip(ids, truth, chosen, logits, probabilities, losses.tolist(), strict=True)
        records = [
            {"id": id, "label": labels[t], "prediction": labels[p], "logits": row, "probabilities": q, "loss": loss}
            for id, t, p, row, q, loss in fields
        ]
        write_predictions(folder, split, records, labels)
        write_rows(folder, split, ({"id": id, "sha256": "0" * 64, "text": f"the text of row {id}"} for id in ids))
        measures = {"measure:tokens": rng.integers(3, 60, rows).astype(float).tolist()}
        if groups:
            measures["group"] = rng.integers(0, groups, rows).tolist()
        columns = {"id": ids} | measures
        lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_measures(folder, split, lines)
        if split == "test":  # what simple answers give: one class, and answers that are right less often
            worse = np.where(rng.random(rows) < 0.7, truth, rng.integers(0, classes, rows))
            write_baselines(
                folder, ids, {"majority": [labels[0]] * rows, "tf_idf": [labels[place] for place in worse.tolist()]}
            )
    counts = {"rows": rows, "classes": dict.fromkeys(labels, rows // classes)}
    run = {
        "task": "text-classification",
        "labels": labels,
        "headline": "macro_f1",
        "data": {"path": "made up", "splits": dict.fromkeys(("train", "dev", "test"), counts)},
        "backbone": {"name": "none", "revision": "main", "architecture": "none"},
        "report": {"group": "of" if groups else None, "alpha": 0.1},
        "calibration": {"temperature": 1.3, "rows": rows, "reason": None, "alpha": 0.1},
        "tables": table_hashes(folder),
        "command": "python benchmarks/report_speed.py",
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dev_rows", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--groups", type=int, help="groups that rows belong to; by default each stands for itself")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        # In a process too: a child's peak of memory starts from its parent's.
        made = get_context("spawn").Process(target=make_tables, args=(Path(place), *vars(how).values()))
        made.start()
        made.join()
        subprocess.run([sys.executable, "-c", TIMED, place], check=True)
        size = (Path(place) / "report.html").stat().st_size / 1e6
    print(f"report.html has {size:.1f} MB")


if __name__ == "__main__":
    main()

"""How good, and how quick, are the simple answers that a report holds a model against?

    python benchmarks/baselines.py banking77 sms_spam flowers12

The names are folders of the real data (GRAFTKIT_ASSETS, or ../shared). Each is read as the recipes read it with no flag
set, so that dev, where there is none, is cut from train. Seconds of processor time are for all baselines of a data set
together, without reading its table and with reading its pictures.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from rounds import ASSETS

from graftkit.baselines import picture_baselines, text_baselines
from graftkit.data import DataConfig, ImageDataConfig, load_pictures, load_splits
from graftkit.metrics import classification


def main(names: list[str]) -> None:
    """Print a line for each data set and baseline."""
    print("data | train rows | test rows | baseline | accuracy | macro F1 | processor seconds of all | facts")
    for name in names:
        path = ASSETS / "data" / name
        texts = any(path.glob("*.csv"))
        splits = (
            load_splits(DataConfig(path=str(path)), 0) if texts else load_pictures(ImageDataConfig(path=str(path)), 0)
        )
        find = text_baselines if texts else picture_baselines
        place = {label: i for i, label in enumerate(splits.labels)}
        truth = np.array([place[label] for label in splits.test["label"]])
        started = time.process_time()
        found = find(splits.labels, splits.train, splits.dev, splits.test)
        seconds = time.process_time() - started
        for kind, baseline in found.items():
            given = np.array([place[label] for label in baseline.given])
            counts = classification.Counts.of(classification.confusion(truth, given, len(place)))
            scores = f"{classification.accuracy(counts):.3f} | {classification.macro_f1(counts):.3f}"
            print(
                f"{name} | {len(splits.train)} | {len(truth)} | {kind} | {scores} | {seconds:.1f} | {baseline.facts}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])

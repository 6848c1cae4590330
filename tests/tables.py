"""Predict a run's tables again from its model folder: run under torchrun by test_processes.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from graftkit.data import DataConfig, load_splits
from graftkit.evaluate import predict_rows
from graftkit.finish import write_tables
from graftkit.report import ReportConfig, write_report
from graftkit.tasks.text_classification import TextClassification

run, data, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
from transformers import AutoTokenizer  # noqa: E402

splits = load_splits(DataConfig(path=str(data)), 0)
task = TextClassification(AutoTokenizer.from_pretrained(run / "model"), splits.labels)
model = task.load(run / "model")
if accelerator.is_main_process:
    out.mkdir()
for split in ("dev", "test"):
    rows = getattr(splits, split)
    records = predict_rows(accelerator, task, model, rows, task.lengths(rows))
    assert [record["id"] for record in records] == list(rows["id"])
    if accelerator.is_main_process:
        write_tables(out, task, split, rows, records, ReportConfig(), True)
if accelerator.is_main_process:
    for name in ("run.json", "config.yaml", "baselines-test.parquet"):
        shutil.copy(run / name, out / name)
    write_report(out)
accelerator.end_training()

"""Write the loss and the whole gradient of one update: run under torchrun by test_processes.py."""

from __future__ import annotations

import json
import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from graftkit.adapt import AdaptConfig, adapt, set_training_mode
from graftkit.backbone import BackboneConfig
from graftkit.data import DataConfig, load_splits
from graftkit.feed import Feed
from graftkit.heads import load_classifier
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer
from graftkit.train import TrainConfig, accumulate_gradients, prepare

checkpoint, data, out, batch_size, accumulate = sys.argv[1:]
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
splits = load_splits(DataConfig(path=data), 0)
backbone = BackboneConfig(name=checkpoint)
tokenizer = load_tokenizer(backbone)
task = TextClassification(tokenizer, splits.labels)
adapted = adapt(load_classifier(backbone, splits.labels, tokenizer, 0), AdaptConfig())
model, _ = prepare(accelerator, adapted, TrainConfig())
set_training_mode(accelerator.unwrap_model(model))
feed = Feed(task, splits.train, task.lengths(splits.train), int(batch_size), int(accumulate), 0, accelerator)
orders = {epoch: [update.rows.tolist() for update in feed.epoch(epoch)] for epoch in (0, 1)}
update = next(iter(feed.epoch(0)))
loss = accumulate_gradients(accelerator, task, model, update)
gradient = torch.cat([p.grad.flatten() for p in accelerator.unwrap_model(model).parameters()])
mine = [batch.ids for batch, real in zip(update.micro_batches, update.real, strict=True) if real]
with open(f"{out}.{accelerator.process_index}.json", "w") as file:
    json.dump({"loss": loss.item(), "rows": update.rows.tolist(), "mine": mine, "orders": orders}, file)
if accelerator.is_main_process:
    save_file({"gradient": gradient.contiguous()}, f"{out}.safetensors")
accelerator.end_training()

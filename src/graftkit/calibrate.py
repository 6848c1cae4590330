"""How is a model made as sure as it is right?

One number, the temperature, is fitted on dev once training has ended, and every logit is divided by it (Guo et al.
2017, "On Calibration of Modern Neural Networks"). It goes into the weights of the last layer, so that whoever loads the
model with plain libraries gets calibrated probabilities. Its answers stay what they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.evaluate import predict_rows
from graftkit.export import ADAPTER, LABELS
from graftkit.metrics import calibration, classification
from graftkit.task import Record, Row, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.run import Run

NOTE = "calibration"  # its name in the settings of a saved model
THRESHOLDS = "thresholds"  # the probability from which on a text is given a label, by label
ANSWERING = "question_answering"  # how a span is chosen, and when none is given
NOTES = (NOTE, THRESHOLDS, ANSWERING)
PROBED = 8  # rows on which it is seen that the logits were divided


def calibrate(
    run: Run,
    task: Task,
    model: nn.Module,
    rows: Sequence[Row],
    lengths: np.ndarray | None,
    *,
    wanted: bool,
    alpha: float,
) -> dict[str, Any]:
    """Fit a temperature on dev (`rows`), divide it into the model's last layer, and return what there is to know of it.

    Where none is `wanted`, or it cannot be had, the model stays as it is, and the reason is in `reason`. `alpha` is for
    the sets of likely labels and the answers that are left out: see `describe`.
    """
    records = predict_rows(run.accelerator, task, model, rows, lengths)
    temperature, reason = fit(records, task.labels) if wanted else (None, "--report.calibrate false")
    if temperature is not None:
        probe = task.collate([task.encode(rows[place], None) for place in range(min(PROBED, len(rows)))])
        probe = probe.to(run.accelerator.device)
        folded = fold(model, temperature, lambda: logits_of(task.predict(model.eval(), probe)))
        if not folded:
            temperature, reason = None, "its logits come from more than one last layer"
    facts = describe(records, task.labels, temperature, reason, alpha)
    run.say(
        f"not calibrated: {reason}"
        if temperature is None
        else f"calibrated on dev: logits are divided by {temperature:.3g}, in the last layer"
    )
    return facts


def fit(records: Sequence[Record], labels: Sequence[str]) -> tuple[float | None, str | None]:
    """The temperature of a classifier from its records of dev, or None and why there is none."""
    truth, predicted, _ = classification.arrays(records, labels)
    if (truth == predicted).all():
        return None, "no dev row is wrong, so nothing says how unsure to be"
    temperature = calibration.fit_temperature(logits_of(records), truth)
    return temperature, None if temperature is not None else "no temperature makes its probabilities on dev better"


def describe(
    records: Sequence[Record], labels: Sequence[str], temperature: float | None, reason: str | None, alpha: float
) -> dict[str, Any]:
    """What run.json and the settings of the saved model say of its probabilities.

    `set_threshold`: labels at least so likely make a set that holds the true one for a share 1 - alpha of rows (split
    conformal prediction; None: too few dev rows to say so). `abstain_below`: answers at least so sure are wrong for a
    share alpha of them at most (None: no threshold does it).
    """
    truth, predicted, _ = classification.arrays(records, labels)
    probabilities = calibration.tempered(logits_of(records), temperature or 1.0)
    return {
        "temperature": temperature,
        "reason": reason,
        "rows": len(records),
        "alpha": alpha,
        "set_threshold": calibration.conformal_threshold(probabilities, truth, alpha),
        "abstain_below": calibration.abstention_threshold(probabilities, predicted, truth, alpha),
    }


def logits_of(records: Sequence[Record]) -> np.ndarray:
    """(rows, labels) float32."""
    return np.stack([record["logits"] for record in records])


def fold(model: nn.Module, temperature: float, ask: Callable[[], np.ndarray]) -> bool:
    """Divide the weights of the last layer by `temperature`; False, and nothing changed, where that is not enough.

    No list of names that last layers go by is needed: `ask` gives the logits (rows, labels) of a few rows, and the
    layer with one output per label that divides them is the one. Two such layers may share the work (DeiT's heads).
    """
    import torch

    before = ask()
    layers = [layer for layer in model.modules() if _outputs(layer) == before.shape[1]]
    for chosen in [*([layer] for layer in reversed(layers)), layers]:
        kept = [tensor.detach().clone() for tensor in _tensors(chosen)]
        with torch.no_grad():
            for tensor in _tensors(chosen):
                tensor.div_(temperature)
            if np.allclose(ask() * temperature, before, rtol=1e-4, atol=1e-4 * float(np.abs(before).max())):
                return True
            for tensor, value in zip(_tensors(chosen), kept, strict=True):
                tensor.copy_(value)
    return False


def _outputs(layer: nn.Module) -> int | None:
    """How many outputs a linear layer, or a convolution, has."""
    weight = getattr(layer, "weight", None)
    return weight.shape[0] if hasattr(weight, "dim") and weight.dim() in (2, 4) else None


def _tensors(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in (layer.weight, getattr(layer, "bias", None)) if tensor is not None]


def read_note(folder: Path) -> dict[str, Any] | None:
    """What the settings of a saved model say of its probabilities; None where graftkit wrote nothing there."""
    path = folder / (LABELS if (folder / ADAPTER).exists() else "config.json")
    note = json.loads(path.read_text(encoding="utf-8")).get(NOTE) if path.exists() else None
    return note if isinstance(note, dict) and note.keys() >= {"temperature", "alpha", "set_threshold"} else None


def write_note(folder: Path, facts: dict[str, Any], name: str = NOTE) -> None:
    """Put what was chosen on dev into a saved model's settings: config.json, or an adapter's labels.json.

    What an earlier training left there goes, under any of the `NOTES`.
    """
    path = folder / (LABELS if (folder / ADAPTER).exists() else "config.json")
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # an adapter without labels
    for known in NOTES:
        settings.pop(known, None)  # transformers would have it stand among the others
    settings[name] = facts
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""How is a finished run calibrated? What `graft calibrate RUN` does.

It follows from the run's own table of dev, so neither the data nor another prediction is needed: the new run's tables
are the old ones with every logit divided by the temperature, and so are the weights of its last layer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.calibrate import describe, fit, fold, logits_of, write_note
from graftkit.classifiers import find_classifier, load_classifier
from graftkit.errors import UserError
from graftkit.export import ADAPTER, HUB_ID, check_saved
from graftkit.fingerprint import file_hashes, settings
from graftkit.images import ImageConfig
from graftkit.metrics import calibration
from graftkit.report import ReportConfig, write_report
from graftkit.report.metric_modules import measure_named
from graftkit.report.reading import SPLITS, Reading, read_folder
from graftkit.report.tables import table_hashes, write_predictions

if TYPE_CHECKING:
    from graftkit.classifiers import Classifier
    from graftkit.task import Record, Task

LEFT = ("run.json", "model", "adapter", "checkpoints", "report", "report.*", "metrics.json", "explanations*")
"""What is not copied: it is made anew, or would be of the model as it was."""
PICTURE = 64  # pixels of the side of a picture that nobody looks at


def recalibrate(folder: Path, out: Path) -> dict[str, Any]:
    """Write a run into `out` that is the one in `folder` but for its temperature; returns its metrics.

    Raises UserError where there is no such run, where it is calibrated already or cannot be, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists; name another folder")
    found = find_classifier(str(folder))
    if not found.run:
        raise UserError(
            f"{folder} is no run (no run.json), so there are no dev rows to go by; name the folder of a run"
        )
    reading = read_folder(folder, SPLITS)
    before = reading.run.get("calibration") or {}
    if before.get("temperature") is not None:
        raise UserError(f"{folder} is calibrated already (temperature {before['temperature']:.3g})")
    dev, labels = reading.records["dev"], reading.labels
    temperature, reason = fit(dev, labels)
    if temperature is None:
        raise UserError(f"{folder} cannot be calibrated: {reason}")
    alpha = reading.settings.get("alpha", ReportConfig().alpha)
    facts = describe(dev, labels, temperature, None, alpha)
    classifier = load_classifier(found, ImageConfig())
    _divide(classifier, temperature, folder)
    shutil.copytree(folder, out, ignore=_left_out(folder), dirs_exist_ok=True)
    _write_model(classifier, facts, found.folder, out / "model")
    for split, records in reading.records.items():
        tempered = [_tempered(record, labels, temperature) for record in records]
        write_predictions(out, split, tempered, labels)
        if split in (reading.run.get("metrics") or {}):  # those of --report.metrics, some of which read probabilities
            reading.run["metrics"][split], _ = measure_named(reading.settings["metrics"], labels, tempered)
    _write_record(reading, classifier.task, facts, out)
    return write_report(out)


def _left_out(folder: Path) -> Callable[[str, list[str]], set[str]]:
    """What `copytree` leaves out of a run's folder itself."""
    left = shutil.ignore_patterns(*LEFT)
    return lambda place, names: left(place, names) if Path(place) == folder else set()


def _tempered(record: Record, labels: Sequence[str], temperature: float) -> dict[str, Any]:
    logits = record["logits"] / np.float32(temperature)
    probabilities = calibration.tempered(logits[None], 1.0)[0]
    loss = -float(np.log(probabilities[list(labels).index(record["label"])]))
    return {**record, "logits": logits, "probabilities": probabilities, "loss": loss}


def _divide(classifier: Classifier, temperature: float, folder: Path) -> None:
    """Divide the last layer of a model. UserError where that is not enough to divide its logits."""
    task, model = classifier.task, classifier.model
    probe = task.collate([task.encode(_row(task), None)])
    if not fold(model, temperature, lambda: logits_of(task.predict(model, probe))):
        raise UserError(f"{folder} cannot be calibrated: its logits come from more than one last layer")


def _write_model(classifier: Classifier, facts: dict[str, Any], source: Path, place: Path) -> None:
    place.mkdir()
    classifier.task.save(place, classifier.model)
    if (source / ADAPTER).exists():  # PEFT names the modules that it saves once more each time it loads them
        shutil.copy2(source / ADAPTER, place / ADAPTER)
    write_note(place, facts)
    check_saved(classifier.model, classifier.task.load(place))


def _row(task: Task) -> dict[str, Any]:
    """A row to ask the model about: any will do."""
    row = {"id": "probe", "label": task.labels[0]}
    if task.name == "text-classification":
        return row | {"text": "Any text will do."}
    import io

    from PIL import Image

    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return row | {"path": None, "bytes": file.getvalue()}


def _write_record(reading: Reading, task: Task, facts: dict[str, Any], out: Path) -> None:
    """run.json of the new run: what was true of the old one, and what is another now."""
    run, model = dict(reading.run), out / "model"
    run.pop("explanations", None)  # of the logits as they were
    saved = dict(run.get("saved") or {})
    if saved.get("overlong"):
        said = saved["overlong"]["probabilities"]
        raised = np.array(list(said.values())) ** (1 / facts["temperature"])
        saved["overlong"] = saved["overlong"] | {
            "probabilities": dict(zip(said, (raised / raised.sum()).tolist(), strict=True))
        }
    note = f"calibrated after it ended, by graft calibrate {reading.folder}"
    run |= {
        "calibration": facts,
        "report": {**reading.settings, "alpha": facts["alpha"]},
        "notes": [*(run.get("notes") or []), note],
        "saved": saved | {"files": file_hashes(model), "settings": settings(model)},
        "tables": table_hashes(out),
        "snippet": task.snippet(model),
        "hub_snippet": task.snippet(model, HUB_ID),
    }
    (out / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

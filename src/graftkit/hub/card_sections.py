"""What does each part of the model's page tell?

All of it follows from the record of the run, its metrics and what the gate found; no row of the data is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.report import classification, sections
from graftkit.report.markdown import (
    bullets,
    decimals,
    duration,
    escape,
    fenced,
    limit,
    number,
    percent,
    plural,
    table,
    title,
    with_interval,
)
from graftkit.report.sections import NOUNS, look

MOST_CLASSES = 20  # a table of more is cut to the SHOWN that a reader should know of
SHOWN = 10
REPORT = "[run/report.md](run/report.md)"
RELATIONS = {"finetune": "A fine-tune of", "adapter": "An adapter for"}
PACKAGES = {"transformers": "torch transformers", "timm": "timm torch transformers", "peft": "peft torch transformers"}


def hub_link(id: str, kind: str = "") -> str:
    """A link to a model on the Hub, or to what `kind` says, such as datasets/."""
    return f"[{escape(id)}](https://huggingface.co/{kind}{id})"


def summary(run: Mapping[str, Any], metrics: Mapping[str, Any], base_id: str | None, relation: str) -> str:
    """One sentence: what it is, what it does, how well, on how many rows."""
    test = metrics["test"]
    noun, name = NOUNS[run["task"]], str(look(run, "backbone", "name"))
    start = f"{RELATIONS[relation]} {hub_link(base_id) if base_id else escape(name)}"
    if look(run, "backbone", "pretrained") is False:
        start = f"A model trained from random weights ({escape(name)})"
    seen = look(run, "data", "overlaps", "test in train") or 0
    fresh = (
        f", of which {seen:,} stand in train too, which flatters the score" if seen else " that it was not trained on"
    )
    return (
        f"{start} that sorts {noun}s into {plural(len(run['labels']), 'class', 'classes')}: "
        f"{title(test['headline']['name'])} **{with_interval(test['headline'])}**, where 1 is perfect, on "
        f"{plural(test['rows'], 'test row')}{fresh}."
    )


def purpose(run: Mapping[str, Any], languages: Sequence[str]) -> str:
    """What it is for, and what not."""
    noun, labels = NOUNS[run["task"]], run["labels"]
    cut = f" and {len(labels) - SHOWN:,} more" if len(labels) > MOST_CLASSES else ""
    names = ", ".join(f"“{escape(label)}”" for label in (labels[:SHOWN] if cut else labels)) + cut
    rows = look(run, "data", "splits", "train", "rows")
    like = f" It learned from {plural(rows, noun)} and is for {noun}s of the same kind." if rows else ""
    limits = _text_limits(run, languages) if noun == "text" else _picture_limits(run)
    return "\n\n".join(
        [
            f"It says which of {plural(len(labels), 'label')} fits a {noun} best: {names}.{like}",
            "It is not for:",
            bullets(
                [
                    f"{noun}s that may have none of these labels: it answers with one of the {len(labels):,} whatever "
                    f"the {noun} is, and can be sure of it",
                    *limits,
                    "decisions about people, unless you measure it on rows of your own first: the scores below do not "
                    "tell for whom it errs more often",
                ]
            ),
        ]
    )


def _text_limits(run: Mapping[str, Any], languages: Sequence[str]) -> list[str]:
    limits = []
    longest, most = look(run, "lengths", "percentiles", "100"), look(run, "lengths", "max_length")
    if longest and most and longest < most:
        limits.append(f"texts much longer than those that it saw, of which the longest has {plural(longest, 'token')}")
    if most:
        limits.append(f"what stands after the first {plural(most, 'token')} of a text: it does not read that")
    base = f"; its base model names {escape(', '.join(languages))}" if languages else ""
    return [*limits, f"other languages than its training texts are in (not recorded{base})"]


def _picture_limits(run: Mapping[str, Any]) -> list[str]:
    limits = []
    size, crop = look(run, "images", "size"), look(run, "images", "crop_pct")
    if size:
        limits.append(
            f"detail that is lost at {' x '.join(map(str, size))} pixels, the size at which it sees a picture"
        )
    if crop and crop < 1 and look(run, "images", "crop_mode") == "center":
        limits.append(f"what lies at the edge of a picture: it sees the middle, {percent(crop)} of the short side wide")
    return limits


def use(run: Mapping[str, Any], library: str) -> str:
    """What to install, and the lines that load it."""
    packages = PACKAGES[library] + (" torchvision" if NOUNS[run["task"]] == "picture" else "")
    versions = run.get("versions") or {}
    made = ", ".join(f"{name} {versions[name]}" for name in packages.split() if name in versions)
    return f"`pip install {packages}`{f' (made with {escape(made)})' if made else ''}, then\n\n{sections.loading(run)}"


def data(run: Mapping[str, Any], hub_id: str | None) -> str:
    """Where the rows come from, how many there are of each class, and what is wrong with them."""
    splits = look(run, "data", "splits") or {}
    counts = look(splits, "train", "classes") or {}
    shown = sorted(counts, key=counts.__getitem__)[:SHOWN] if len(counts) > MOST_CLASSES else list(counts)
    cut = {
        name: {**split, "classes": {label: look(split, "classes", label) or 0 for label in shown}}
        for name, split in splits.items()
    }
    parts = [sections.data({**run, "data": {**run["data"], "splits": cut}})]
    if len(shown) < len(counts):
        parts.append(f"These {SHOWN} of {len(counts)} classes have the fewest rows in train; {REPORT} has all.")
    facts = [f"On the Hub: {hub_link(hub_id, 'datasets/')}"] if hub_id else []
    for split, how in (look(run, "data", "cut_from_train") or {}).items():
        facts.append(f"{escape(split)} was cut from train: {percent(how['share'])} of it, seed {how['seed']}")
    overlaps, repeats = look(run, "data", "overlaps"), look(run, "data", "repeats_in_train")
    if overlaps and repeats and not any((*overlaps.values(), *repeats.values())):
        facts.append(f"No {NOUNS[run['task']]} stands twice in train, or in two of the splits")
    warnings = sections.remarks({**run, "notes": []}) if run.get("warnings") else ""
    return "\n\n".join([*parts, "\n".join(part for part in (bullets(facts), warnings) if part)]).rstrip()


def training(run: Mapping[str, Any]) -> str:
    """What trained, how, on what, for how long."""
    seconds, hardware = run.get("seconds") or {}, run.get("hardware") or {}
    machine = [
        hardware.get("cpu"),
        plural(hardware["cores"], "core") if hardware.get("cores") else None,
        f"{hardware['memory_gib']:.0f} GiB of memory" if hardware.get("memory_gib") else None,
        ", ".join(str(gpu) for gpu in hardware.get("gpus") or ["no GPU"]),
    ]
    facts = {
        "Hardware": escape(", ".join(part for part in machine if part)) if hardware else None,
        "Precision": escape(str(run["precision"])) if run.get("precision") else None,
        "Time": f"{duration(seconds['total'])} in all" if seconds.get("total") else None,
    }
    if facts["Time"] and seconds.get("train"):
        facts["Time"] += f", of which {duration(seconds['train'])} for training"
    lines = bullets(f"{name}: {fact}" for name, fact in facts.items() if fact)
    return f"{sections.model(run)}\n{lines}\n\nAll settings: {REPORT}"


def scores(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The report's tables of scores and of classes; of many classes, the weakest."""
    test = metrics["test"]
    weakest = _weakest(test)
    shown = weakest[:SHOWN] if len(weakest) > MOST_CLASSES else weakest
    cut = {**metrics, "test": {**test, "per_class": shown}}
    parts = classification.chapters(cut, run, [], {})
    left = [f"The {SHOWN} weakest of {len(weakest)} classes; {REPORT} has all."] if len(shown) < len(weakest) else []
    return "\n\n".join([parts["Scores"], "### By class", *left, parts["Classes"]])


def _weakest(test: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The classes by F1, the lowest first; those that no test row has come last."""
    return sorted(test["per_class"], key=lambda line: (line["support"] == 0, line["f1"]))


def weaknesses(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The classes that it finds hardest and takes for each other, and how far its probabilities can be trusted."""
    test = metrics["test"]
    seen = [line for line in _weakest(test) if line["support"]]
    places = decimals(test["rows"] ** -0.5)
    accuracy, calibration = (number(test["scores"][name], places) for name in ("accuracy", "calibration_error"))
    always = number(max(line["support"] for line in seen) / test["rows"], places)
    hardest = ", ".join(f"“{escape(line['label'])}” ({number(line['f1'], 2)})" for line in seen[:3] if line["f1"] < 1)
    facts = [f"Lowest F1: {hardest}"] if hardest else ["No test row was given a wrong class"]
    facts.append(f"Accuracy is {accuracy}; always answering with the most frequent class would reach {always}")
    facts.append(f"Its stated probabilities are off by {calibration} on average (expected calibration error)")
    few = sum(line["support"] < classification.FEW for line in seen)
    if few:
        which = plural(few, "class has", "classes have")
        facts.append(f"{which} fewer than {classification.FEW} test rows: their own scores are rough")
    if len(seen) < len(test["per_class"]):
        unseen = plural(len(test["per_class"]) - len(seen), "class has", "classes have")
        facts.append(f"{unseen} no test row and could not be measured")
    cut = look(run, "lengths", "truncated_share")
    if cut:
        facts.append(f"{percent(cut)} of the training texts were too long and were cut")
    return "\n\n".join([bullets(facts + _probabilities(run, metrics)), *_confused(test)])


def _probabilities(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Whether its probabilities were calibrated, and what may be done with them: thresholds and what they gave."""
    facts, known = [], run.get("calibration") or {}
    if known.get("temperature") is not None:
        facts.append(
            f"Calibrated: its logits are divided by {known['temperature']:.3g}, fitted on "
            f"{plural(known['rows'], 'dev row')} (temperature scaling); this is in its last layer already"
        )
    sets, alpha = look(metrics, "probabilities", "sets") or {}, look(metrics, "probabilities", "alpha")
    if sets.get("threshold") is not None:
        facts.append(
            f"All labels with a probability of {limit(sets['threshold'])} and more, and the likeliest in any case, "
            f"are a set that should hold the true one for {percent(1 - alpha)} of rows (split conformal prediction); "
            f"on test it did for {with_interval(sets['covered'])}, with {number(sets['mean_size'], 1)} labels each"
        )
    abstention = look(metrics, "probabilities", "abstention") or {}
    if abstention.get("threshold") is not None and abstention.get("wrong"):
        which = f"with a probability of {limit(abstention['threshold'])} and more "
        facts.append(
            f"Answers {which if abstention['threshold'] else ''}should be wrong in at most "
            f"{percent(alpha)}; on test these were {with_interval(abstention['answered'])} of all rows, and "
            f"{with_interval(abstention['wrong'])} of them were wrong"
        )
    return facts


def _confused(test: Mapping[str, Any]) -> list[str]:
    """The pairs of classes that were confused most often, as a table, if any were."""
    names, counts = test["confusion"]["labels"], test["confusion"]["counts"]
    pairs = [(row[j], i, j) for i, row in enumerate(counts) for j in range(len(row)) if i != j and row[j]]
    lines = [
        (escape(names[i]), escape(names[j]), f"{rows:,}", percent(rows, sum(counts[i])))
        for rows, i, j in sorted(pairs, key=lambda pair: -pair[0])[:SHOWN]
    ]
    header = ("True class", "Taken for", "Rows", "Share of the class")
    return ["Most often confused:", table(header, lines, numbers=[2, 3])] if lines else []


def verification(run: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What was checked before the push, in words for someone who has never heard of the gate."""
    headline, padded, beyond = found["headline"], found["padded_batch"], found["beyond_max_length"]
    fresh, before = number(headline["fresh"], 4), number(headline["run"], 4)
    longest, batch = (", the longest among them", "padded batch") if NOUNS[run["task"]] == "text" else ("", "batch")
    facts = [
        f"Probabilities: the largest difference from those behind the scores is {found['max_difference']:.2g}",
        f"{title(headline['name'])} of these rows: {fresh}; in the run: {before}",
        f"Confusion matrix of these rows (what was given for what): {escape(found['confusion_matrix'])} as in the run",
        f"{plural(padded['rows'], 'row')} in one {batch}: the largest difference is {padded['max_difference']:.2g}",
    ]
    if beyond is not None:
        facts.append(f"A text longer than it reads: the largest difference is {beyond['max_difference']:.2g}")
    if found["redrawn"]:
        others = plural(found["redrawn"], "of these pictures was", "of these pictures were")
        facts.append(
            f"{others} given as graftkit reads them, since plain libraries read such files (of 16 bits, transparent, "
            "or very long) in another way"
        )
    versions = ", ".join(f"{escape(name)} {escape(str(version))}" for name, version in found["versions"].items())
    intro = (
        f"Before these files were pushed, a new process without graftkit loaded them as anyone would ({versions}) and "
        f"answered {plural(found['rows'], 'test row')}{longest}."
    )
    return f"{intro}\n\n{bullets(facts)}"


def again(run: Mapping[str, Any]) -> str:
    """The command, versions, seed and fingerprints that make the run again."""
    versions = {"graftkit": run.get("graftkit"), **(run.get("versions") or {})}
    facts = {
        "Seed": run.get("seed"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Git commit": run.get("git_commit"),
        "Commit of the base model": look(run, "backbone", "commit"),
    }
    splits = look(run, "data", "splits") or {}
    prints = [(escape(name), f"{split['rows']:,}", escape(str(split.get("sha256")))) for name, split in splits.items()]
    parts = [
        fenced(run["command"], "bash") if run.get("command") else "",
        bullets(f"{name}: {escape(str(fact))}" for name, fact in facts.items() if fact not in (None, "")),
        "Fingerprints: the same rows have the same SHA-256.",
        table(("Split", "Rows", "SHA-256"), prints, numbers=[1]) if prints else "Not recorded.",
    ]
    return "\n\n".join(part for part in parts if part)

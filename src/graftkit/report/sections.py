"""What does every report say, whatever the task? Where the rows, the model and the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.markdown import (
    amount,
    bullets,
    duration,
    escape,
    fenced,
    megabytes,
    number,
    percent,
    plural,
    table,
    title,
)

NOT_RECORDED = "not recorded"
NOUNS = {
    "text-classification": "text",
    "image-classification": "picture",
    "token-classification": "sentence",
    "multi-label-classification": "text",
    "text-regression": "text",
    "question-answering": "question",
    "text-generation": "document",
    "text2text-generation": "text",
    "fill-mask": "document",
}
"""For each task, what a row is, in a word whose plural ends in s."""
COUNTED = {"cpu_joules": "processor", "gpu_joules": "GPU"}
"""What energy is counted of, by the name of its joules in run.json."""
STOPPED = {
    "finished": "it went through all epochs",
    "early": "it stopped early, as the dev score no longer rose",
    "max_steps": "it stopped at the largest number of updates that was allowed",
}


def look(record: Any, *names: str) -> Any:
    """The part of a nested record under these names, None where there is none."""
    for name in names:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def is_evaluation(run: Mapping[str, Any]) -> bool:
    """Whether there is a table of test alone: a model was scored that was there before, or those of folds were."""
    return run.get("recipe") == "evaluate" or is_folds(run)


def is_folds(run: Mapping[str, Any]) -> bool:
    """Whether test is all rows, each predicted by the one model of several that did not learn from it."""
    return "folds" in run


def apart(run: Mapping[str, Any]) -> str:
    """What a run can say of its test rows; of a model from elsewhere nobody knows it here."""
    if is_folds(run):
        return f", each answered by the one of {len(run['folds'])} models that had not seen it"
    return "" if is_evaluation(run) else " that it was not trained on"


def has_no_model(run: Mapping[str, Any]) -> bool:
    """Whether the folder tells of no training of one model: an evaluation, folds, or several seeds."""
    return is_evaluation(run) or "seeds" in run


def heading(run: Mapping[str, Any]) -> str:
    """The report's title: the task and the model."""
    backbone = str(look(run, "backbone", "name") or "").rstrip("/").rpartition("/")[2]
    several = next((f", over {len(run[name])} {name}" for name in ("seeds", "folds") if name in run), "")
    words = escape(run["task"].replace("-", " ").capitalize())
    return words + (f" with {escape(backbone)}" if backbone else "") + several


def data(run: Mapping[str, Any]) -> str:
    """Where the rows come from, how long or large they are, which stand twice, and how many each class has."""
    splits = look(run, "data", "splits") or {}
    columns = look(run, "data", "columns")
    dropped = look(run, "data", "dropped")
    facts = {
        "Source": _flat(look(run, "data", "path") or look(run, "data", "sources")),
        "Columns": "" if columns is None else _columns(columns),
        "Left out": "" if dropped is None else _flat(dropped) or "no rows",
        **_EXTENTS.get(NOUNS[run["task"]], _texts)(run),
    }
    if not is_evaluation(run):
        facts |= {"Repeats in train": _repeats(run), "Rows that stand in two splits": _overlaps(run)}
    counts = _word_counts if look(splits, "train", "words") else _class_counts
    if splits and all("classes" not in split for split in splits.values()):
        counts = _row_counts
    return "\n\n".join([_facts(facts), counts(splits) if splits else "Rows per class: not recorded."])


def remarks(run: Mapping[str, Any]) -> str:
    """What the run warned of, and what it noted."""
    warnings = [f"**Warning:** {escape(str(warning))}" for warning in run.get("warnings") or []]
    notes = [escape(str(note)) for note in run.get("notes") or []]
    none = f"Warnings: {NOT_RECORDED}" if run.get("warnings") is None else "No warnings."
    return bullets((warnings or [none]) + notes)


def model(run: Mapping[str, Any]) -> str:
    """The checkpoint, what of it trained, and how."""
    name, architecture = look(run, "backbone", "name"), look(run, "backbone", "architecture")
    revision = look(run, "backbone", "revision")
    started = ", ".join(escape(str(part)) for part in (name, revision and f"revision {revision}", architecture) if part)
    if is_evaluation(run) and not is_folds(run):
        commit = look(run, "backbone", "commit")
        whole = f"{started}, commit {escape(commit)}" if commit else started
        return _facts({"Model": whole, **_inputs(run)})
    facts = {
        "Pretrained model": started,
        "Adapting": _trained(run),
        **_inputs(run),
        **_cost(run),
    }
    if has_no_model(run):
        kind = "folds" if is_folds(run) else "seeds"
        facts["Training"] = f"{len(run[kind])} models, one after the other; the report of each tells of it"
    else:
        facts |= _solved(run)
        if run.get("training") or not run.get("solver"):
            facts |= {"Training": _training(run), **_rate(run), **_kept(run)}
    return _facts(facts)


def costs(run: Mapping[str, Any]) -> str:
    """Seconds per phase, memory, energy, and the machine."""
    seconds = {name: spent for name, spent in (run.get("seconds") or {}).items() if spent is not None}
    phases = [(escape(name), duration(spent)) for name, spent in seconds.items() if name != "total"]
    if "total" in seconds:
        phases.append(("**total**", f"**{duration(seconds['total'])}**"))
    memory = run.get("peak_memory_gib") or {}
    held = [f"{gib:.1f} GiB by the {name}" for name, gib in memory.items() if gib is not None]
    hardware = look(run, "hardware") or {}
    machine = [
        _text(hardware.get("cpu")) if hardware.get("cpu") else "",
        plural(hardware["cores"], "core") if hardware.get("cores") else "",
        f"{hardware['memory_gib']:.0f} GiB of memory" if hardware.get("memory_gib") else "",
        ", ".join(escape(str(gpu)) for gpu in hardware.get("gpus") or []) or ("no GPU" if hardware else ""),
    ]
    facts = {
        "Most memory held": ", ".join(held),
        "Energy": _energy(run),
        "Machine": ", ".join(part for part in machine if part),
    }
    times = table(("Phase", "Time"), phases, numbers=[1]) if phases else "Time per phase: not recorded."
    return "\n\n".join([times, _facts(facts)])


def _energy(run: Mapping[str, Any]) -> str:
    """Watt-hours, and of what."""
    joules = run.get("energy")
    if joules is None:
        return ""
    counted = {name: joules[key] / 3600 for key, name in COUNTED.items() if key in joules}
    if not counted:
        return "not measured: this machine does not tell"
    parts = [f"{_hours(hours)} by the {name}" for name, hours in counted.items()]
    return f"{', '.join(parts)}, with all else that ran on it meanwhile; memory and cooling are not counted"


def _hours(hours: float) -> str:
    """Watt-hours in two digits or whole; a counter knows no more."""
    return "under 0.01 Wh" if hours < 0.01 else f"{hours:,.0f} Wh" if hours >= 10 else f"{hours:.2g} Wh"


def loading(run: Mapping[str, Any]) -> str:
    """The lines of Python that load the model."""
    return fenced(run["snippet"], "python") if run.get("snippet") else "The lines that load it: not recorded."


def origin(run: Mapping[str, Any], config: str | None) -> str:
    """The command, versions, fingerprints and settings that make the run again."""
    versions = {"graftkit": run.get("graftkit"), **(run.get("versions") or {})}
    processes, threads = run.get("processes"), run.get("threads")
    facts = {
        "Versions": ", ".join(
            f"{escape(str(name))} {escape(str(number))}" for name, number in versions.items() if number
        ),
        "Git commit": _text(run.get("git_commit")),
        **({} if is_evaluation(run) and not is_folds(run) else {"Seed": _text(run.get("seed"))}),
        "Ran as": f"{plural(processes, 'process', 'processes')} with {plural(threads, 'thread')}"
        if processes and threads
        else "",
        "Device and precision": ", ".join(escape(str(run[name])) for name in ("device", "precision") if run.get(name)),
    }
    splits = look(run, "data", "splits") or {}
    prints = [
        (escape(name), _count(look(split, "rows")), _text(look(split, "sha256"))) for name, split in splits.items()
    ]
    return "\n\n".join(
        [
            fenced(run["command"], "bash") if run.get("command") else "Command: not recorded.",
            _facts(facts),
            "Fingerprints of the data: the same rows have the same SHA-256.",
            table(("Split", "Rows", "SHA-256"), prints, numbers=[1]) if prints else "Not recorded.",
            "Settings (config.yaml):",
            fenced(config, "yaml") if config else "Not recorded.",
        ]
    )


def _facts(facts: Mapping[str, str]) -> str:
    return bullets(f"{name}: {value or NOT_RECORDED}" for name, value in facts.items())


def _text(value: Any) -> str:
    return NOT_RECORDED if value is None else escape(str(value))


def _count(value: Any) -> str:
    return NOT_RECORDED if value is None else f"{value:,}"


def _flat(value: Any) -> str:
    """A small nested record as a phrase; zeros and empty parts are left out."""
    if isinstance(value, Mapping):
        parts = [(escape(str(name)), part) for name, part in value.items()]
        return "; ".join(
            f"{part:,} x {name}" if isinstance(part, int) else f"{name}: {_flat(part)}" for name, part in parts if part
        )
    return escape(str(value)) if value else ""


def _columns(columns: Mapping[str, Any]) -> str:
    """Which column of the source each column comes from; a folder of pictures per class has none."""
    names = [f"{escape(str(name))} from “{escape(str(column))}”" for name, column in columns.items() if column]
    return ", ".join(names) or "none"


def _class_counts(splits: Mapping[str, Any]) -> str:
    """Rows per class and split, with a last line for all."""
    counts = {name: look(split, "classes") or {} for name, split in splits.items()}
    labels = list(dict.fromkeys(label for classes in counts.values() for label in classes))
    lines = [[escape(label), *(f"{classes.get(label, 0):,}" for classes in counts.values())] for label in labels]
    lines.append(["**all**", *(f"**{_count(look(split, 'rows'))}**" for split in splits.values())])
    header = ["Class", *(f"Rows in {escape(name)}" for name in splits)]
    return table(header, lines, numbers=range(1, len(header)))


def _row_counts(splits: Mapping[str, Any]) -> str:
    """Rows per split, where they have no class."""
    return table(
        ("Split", "Rows"), [(escape(name), _count(look(s, "rows"))) for name, s in splits.items()], numbers=[1]
    )


def _word_counts(splits: Mapping[str, Any]) -> str:
    """Entities per type, and words per tag, of each split."""
    names = list(splits)
    parts = []
    for head, field, things in (("Type", "entities", "Entities"), ("Tag", "classes", "Words")):
        counts = [look(split, field) or {} for split in splits.values()]
        kinds = list(dict.fromkeys(kind for each in counts for kind in each))
        lines = [[escape(kind), *(f"{each.get(kind, 0):,}" for each in counts)] for kind in kinds]
        lines.append(["**all**", *(f"**{sum(each.values()):,}**" for each in counts)])
        header = [head, *(f"{things} in {escape(name)}" for name in names)]
        parts += [table(header, lines, numbers=range(1, len(header)))] if kinds else []
    rows = ", ".join(f"{_count(look(split, 'rows'))} in {escape(name)}" for name, split in splits.items())
    return "\n\n".join([f"Sentences: {rows}.", *parts])


def _trained(run: Mapping[str, Any]) -> str:
    trained, total = look(run, "adapt", "trained_parameters"), look(run, "adapt", "total_parameters")
    if trained is None or not total:
        return ""
    what = look(run, "adapt", "description") or look(run, "adapt", "strategy") or ""
    share = f"{amount(trained)} of {amount(total)} parameters ({percent(trained, total)})"
    saved, adapter = look(run, "saved", "weight_bytes"), look(run, "saved", "adapter_bytes")
    if saved is not None:
        share += f"; saved, its weights take {megabytes(saved)}"
        share += f", those of the adapter alone {megabytes(adapter)}" if adapter else ""
    return f"{escape(what)}: {share}" if what else share


def _steps(percentiles: Mapping[str, Any] | None) -> list[tuple[float, Any]]:
    """Percentiles as JSON keeps them, by name, in order: step and value."""
    return sorted((float(step), value) for step, value in (percentiles or {}).items())


def _repeats(run: Mapping[str, Any]) -> str:
    """How many rows of train stand there before, and whether under another label."""
    found = look(run, "data", "repeats_in_train")
    if found is None:
        return ""
    count, noun = found.get("repeated_rows", 0), NOUNS[run["task"]]
    several = found.get(f"{noun}s_with_several_labels", 0)
    under = f"; {plural(several, noun)} with more than one label" if several else ""
    return (plural(count, "row") if count else "none") + under


def _overlaps(run: Mapping[str, Any]) -> str:
    """How many rows of a split also stand in another."""
    found = look(run, "data", "overlaps")
    if found is None:
        return ""
    splits = look(run, "data", "splits") or {}
    parts = []
    for pair, count in found.items():
        one, _, other = pair.partition(" in ")
        rows = look(splits, one, "rows")
        share = f" ({percent(count, rows)})" if rows else ""
        if count:
            parts.append(f"{count:,} of {escape(one)}{share} also in {escape(other)}")
    return ", ".join(parts) or "none"


def _texts(run: Mapping[str, Any]) -> dict[str, str]:
    return {f"Tokens (words or parts of words) per {NOUNS[run['task']]}": _lengths(run)}


def _lengths(run: Mapping[str, Any]) -> str:
    lengths = run.get("lengths") or {}
    steps = _steps(lengths.get("percentiles"))
    noun = NOUNS[run["task"]]
    parts = [f"{step:g}% of the {noun}s have at most {_count(tokens)}" for step, tokens in steps[:1] if step < 100]
    parts += [f"{step:g}% at most {_count(tokens)}" for step, tokens in steps[1:] if step < 100]
    parts += [f"the longest has {_count(tokens)}" for step, tokens in steps if step == 100]
    sentences = [", ".join(parts)] if parts else []
    cut, share = lengths.get("truncated_rows"), lengths.get("truncated_share") or 0.0
    if lengths.get("max_length"):
        sentences.append(f"the model reads at most {_count(lengths['max_length'])}")
    windowed = lengths.get("windowed_rows")
    if windowed:
        overlap = "" if run["task"] == "fill-mask" else " that overlap"
        sentences.append(f"{plural(windowed, 'longer one was', 'longer ones were')} read in windows{overlap}")
    elif cut is not None:
        sentences.append(
            f"{plural(cut, f'longer {noun} was', f'longer {noun}s were')} cut ({percent(share)})"
            if cut
            else f"no {noun} was cut"
        )
    return "; ".join(sentences)


def _sizes(run: Mapping[str, Any], split: str) -> str:
    ends = {0: "the smallest has {}", 100: "the largest has {}"}
    steps = _steps(look(run, "data", "sizes", split))
    parts = [ends.get(step, f"{step:g}% have at most {{}}").format(_count(pixels)) for step, pixels in steps]
    return ", ".join(parts) + " pixels" if parts else ""


def _pictures(run: Mapping[str, Any]) -> dict[str, str]:
    """How the model sees a picture, and how pictures are read while it trains."""
    images = run.get("images") or {}
    seen = []
    if images.get("size"):
        seen.append(" x ".join(map(str, images["size"])) + " pixels (height x width)")
    if images.get("interpolation"):
        seen.append(f"resized by {escape(str(images['interpolation']))} interpolation")
    if images.get("crop_pct") is not None:
        seen.append(f"cut from the middle (crop_pct {images['crop_pct']:g})")
    for name, words in (("mean", "mean"), ("std", "standard deviation")):
        if images.get(name):
            seen.append(f"{words} {' / '.join(f'{value:g}' for value in images[name])}")
    augment = images.get("augment")
    if is_evaluation(run) and not is_folds(run):
        return {"Pictures": "; ".join(seen)}
    return {
        "Pictures": "; ".join(seen),
        "Changes to the pictures while training": "" if augment is None else escape(str(augment)),
        "Reading of the pictures": _reading(images),
    }


def _reading(images: Mapping[str, Any]) -> str:
    workers, cache = images.get("workers"), images.get("cache")
    parts = []
    if workers is not None:
        several = plural(workers, "worker process", "worker processes")
        parts.append(f"by {several}" if workers else "by each process itself")
    if cache is not None:
        parts.append("resized once and kept on disk" if cache else "each epoch decodes them again")
    return "; ".join(parts)


def _sides(run: Mapping[str, Any]) -> dict[str, str]:
    if is_evaluation(run) and not is_folds(run):
        return {"Short side of the pictures": _sizes(run, "test")}
    return {"Short side of the training pictures": _sizes(run, "train")}


_EXTENTS = {"picture": _sides}
"""How long or large the rows are."""


def _inputs(run: Mapping[str, Any]) -> dict[str, str]:
    """How the model sees a row, where more is to say than how much of it."""
    return _pictures(run) if NOUNS[run["task"]] == "picture" else {}


def _cost(run: Mapping[str, Any]) -> dict[str, str]:
    """What a wrong answer costs in training, where that is not the plain cross-entropy, and who taught."""
    loss, teacher = run.get("loss") or {}, run.get("teacher") or {}
    words = {
        "label_smoothing": "labels smoothed by {}",
        "class_weights": "rows of rare labels weigh more ({})",
        "sampling": "rows of each label are drawn equally often ({})",
        "focal": "focal loss with exponent {}",
    }
    parts = [said.format(escape(str(loss[name]))) for name, said in words.items() if name in loss]
    found = {"Loss": "; ".join(parts)} if parts else {}
    if not teacher:
        return found
    name, score = next(iter(teacher["dev"].items()))
    known = f"{escape(str(teacher['name']))} ({title(name)} {number(score, 2)} on dev)"
    how = f"its share of the loss is {number(teacher['share'], 2)}, its temperature {teacher['temperature']:g}"
    return {**found, "Teacher": f"{known}; {how}"}


def _solved(run: Mapping[str, Any]) -> dict[str, str]:
    """How the head was computed, where it was."""
    solver = run.get("solver")
    if not solver:
        return {}
    score = f"{title(str(run.get('headline') or 'score'))} {number(solver['score'], 2)}"
    said = (
        f"computed at once from what the network says of {plural(solver['rows'], 'row')}; of {len(solver['tried'])} "
        f"strengths of L2, {solver['strength']:.2g} is chosen on dev ({score})"
    )
    if solver["unsolved"]:
        names = escape(", ".join(solver["unsolved"]))
        said += (
            f". Only its last layer was computed: what comes before it ({names}) is new and random, unless the "
            "pretrained model brought it. If the scores disappoint, let everything train"
        )
    return {"Head": said}


def _training(run: Mapping[str, Any]) -> str:
    training = run.get("training") or {}
    if merged := look(run, "soup", "runs"):
        return f"none of its own: its weights are an average of those of {merged} runs, whose reports tell of it"
    parts = []
    if training.get("epochs") is not None:
        parts.append(f"{training['epochs']:g} {'epoch' if training['epochs'] == 1 else 'epochs'}")
    if training.get("updates") is not None:
        each = training.get("rows_per_update")
        parts.append(plural(training["updates"], "update") + (f" of {_count(each)} rows" if each else ""))
    if training.get("rows_per_second"):
        parts.append(f"{training['rows_per_second']:,.0f} rows per second")
    why = training.get("stopped")
    ended = [STOPPED.get(why, escape(str(why)))] if why else []
    return "; ".join([", ".join(parts)] * bool(parts) + ended)


def _rate(run: Mapping[str, Any]) -> dict[str, str]:
    """The rate that was found; nothing where the user set one."""
    found = run.get("rate_range")
    if not found:
        return {}
    rose = f"rates that rose from {found['rates'][0]:.0e} to {found['rates'][-1]:.0e}"
    return {"Learning rate": f"{found['lr']:g}, found in {plural(len(found['rates']), 'update')} at {rose}"}


def _best(run: Mapping[str, Any]) -> str:
    update, score = look(run, "training", "best", "update"), look(run, "training", "best", "score")
    if update is None:
        return ""
    reached = "" if score is None else f" ({title(str(run.get('headline') or 'score'))} {number(score, 2)})"
    return f"those after update {_count(update)}, the best on dev{reached}"


def _kept(run: Mapping[str, Any]) -> dict[str, str]:
    """Which weights are kept: those after an epoch, or what was made of them."""
    made = _soup(run) | _between(run)
    if not made:
        return {"Weights kept": _best(run)}
    return ({"Best epoch": _best(run)} if run.get("training") else {}) | made


def _soup(run: Mapping[str, Any]) -> dict[str, str]:
    """Which weights were averaged, and what that gained on dev; nothing where none were."""
    soup = run.get("soup")
    if not soup:
        return {}
    whose = "run" if "runs" in soup else "update"
    taken = [escape(str(one["name"])) for one in soup["members"] if one["kept"]]
    score = title(str(run.get("headline") or "score"))
    tried = [f"{escape(str(one['name']))}: {number(one['score'], 2)}" for one in soup["members"]]
    said = (
        f"the average of the weights of {plural(len(taken), whose)} ({', '.join(taken)})"
        if len(taken) > 1
        else f"those of {whose} {taken[0]} alone, since no average did as well on dev"
    )
    return {
        f"Soup ({soup['kind']})": f"{said}: {score} {number(soup['score'], 2)} on dev; each alone, by {whose}: "
        f"{', '.join(tried)}"
    }


def _between(run: Mapping[str, Any]) -> dict[str, str]:
    """How far between the pretrained and the trained weights those stand that are kept; nothing where not asked for."""
    chosen = run.get("wise_ft")
    if not chosen:
        return {}
    score = title(str(run.get("headline") or "score"))
    tried = [f"{one['alpha']:g}: {number(one['score'], 2)}" for one in chosen["table"]]
    head = ". The head is new, and stays as it was trained" if chosen["head_stays"] else ""
    return {
        "Between the pretrained weights (0) and the trained ones (1)": f"{chosen['alpha']:g} of the way is kept, the "
        f"best on dev; {score} there: {', '.join(tried)}{head}"
    }

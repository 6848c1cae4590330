"""What does the report of a model that writes say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as html_escape
from typing import Any

from graftkit.metrics.language import CAUSAL, HEADLINES
from graftkit.report import curves
from graftkit.report import rows as of_rows
from graftkit.report.charts import tag
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, fenced, number, percent, plural, shorten, table, told
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS, look

WORST = 20
SAMPLES = "How it writes, before and after"
MEANINGS = {
    "perplexity": "how unsure it is of the next token, as if it drew from so many equally likely ones: 1 is perfect, "
    "lower is better; depends on how the tokenizer cuts words",
    "bits_per_byte": "the same for each byte of text, in bits: 0 is perfect, lower is better; compares models of "
    "different tokenizers",
    "perplexity_per_byte": "the same as a number of equally likely bytes: 1 is perfect, lower is better",
    "log_loss": "the logarithm of perplexity, which training lowers: 0 is perfect, lower is better",
    "token_accuracy": "share of tokens that it holds the likeliest of all, and that do come next",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    records = reading.records[split]
    counted = {name: sum(record[name] for record in records) for name in ("tokens", "bytes")}
    return of_rows.measure(reading, split, CAUSAL, HEADLINES) | counted


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, what that means, and what to watch out for."""
    test = metrics["test"]
    perfect = {"perplexity": "where 1 would be perfect"}.get(test["headline"]["name"], "where 0 would be perfect")
    sentences = [of_rows.opening(metrics, run, "foresees text", perfect=perfect)]
    unsure, _ = told(test["scores"]["perplexity"], test["intervals"]["perplexity"])
    sentences.append(
        f"On average it is as unsure of the next token (a word or a part of one) as if it drew from {unsure} equally "
        f"likely ones; of {plural(test['tokens'], 'token')}, {percent(test['scores']['token_accuracy'])} are the ones "
        "that it held the likeliest. How well it foresees says little of whether what it writes is true."
    )
    cautions = ["perplexities of models that cut words otherwise cannot be compared, bits per byte can"]
    if warnings := run.get("warnings"):
        cautions.append(f"the run gave {plural(len(warnings), 'warning')} (below)")
    return " ".join([*sentences, f"**Watch out:** {'; '.join(cautions)}."])


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the highest loss per token."""
    return sorted(records, key=lambda record: -record["loss"] / record["tokens"])[:most]


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on a model that writes, by heading; `shown` are the worst records, `rows` their rows."""
    samples = {SAMPLES: _samples(run)} if look(run, "samples", "rows") else {}
    return (
        {"Scores": of_rows.scores(metrics, run, MEANINGS)}
        | samples
        | {"Hardest to foresee": _hardest(run, shown, rows)}
    )


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training, and samples side by side."""
    found = look(reading.run, "samples", "rows")
    beside = {SAMPLES: Addition(_side_by_side(reading.run), instead=True)} if found else {}
    return beside | curves.additions(metrics, reading.run, log)


def _how_drawn(run: Mapping[str, Any]) -> str:
    settings = run["samples"]["settings"]
    if settings["temperature"]:
        how = f"drawn at temperature {settings['temperature']:g} from the likeliest {settings['top_p']:.0%}"
    else:
        how = "each token the likeliest"
    return (
        f"What the model goes on with from the beginning of some rows of test, before it was trained here and after: "
        f"{how}, at most {plural(settings['max_new_tokens'], 'token')}. The same seed draws the same text. "
        "These are a few examples that nobody chose; the scores are of all rows."
    )


def _samples(run: Mapping[str, Any]) -> str:
    parts = [_how_drawn(run)]
    for sample in run["samples"]["rows"]:
        parts.append(f"**{escape(sample['id'])}** begins with")
        parts.append(fenced(sample["begins"]))
        for when in ("before", "after"):
            parts += [f"{when.capitalize()}:", fenced(sample[when])]
    return "\n\n".join(parts)


def _side_by_side(run: Mapping[str, Any]) -> str:
    """The samples as a table, a line for each."""
    style = "white-space: pre-wrap; vertical-align: top; text-align: left"
    head = "".join(tag("th", words, scope="col") for words in ("Begins with", "Before", "After"))
    lines = [
        tag("tr", "".join(tag("td", html_escape(sample[name]), style=style) for name in ("begins", "before", "after")))
        for sample in run["samples"]["rows"]
    ]
    caption = tag("caption", html_escape(SAMPLES), class_="unseen")
    whole = tag("table", caption + tag("thead", tag("tr", head)) + tag("tbody", "".join(lines)))
    box = tag("div", whole, class_="scroll", role="region", aria_label=SAMPLES, tabindex=0)
    return tag("p", html_escape(_how_drawn(run))) + box


def _hardest(run: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> str:
    noun = NOUNS[run["task"]]
    intro = (
        f"The test {noun}s of the highest loss per token. Look for what is unlike the rest: another language, codes "
        "and numbers, or text that was broken on its way here."
    )
    lines = []
    for record in shown:
        row = rows.get(record["id"], {})
        texts = [row[name] for name in ("text", "chat", "prompt", "completion") if row.get(name)]
        excerpt = escape(shorten(" … ".join(texts))) if texts else "*not kept*"
        per_token = record["loss"] / record["tokens"]
        lines.append((excerpt, number(per_token, 2), f"{record['tokens']:,}", escape(record["id"])))
    return f"{intro}\n\n{table((noun.capitalize(), 'Loss per token', 'Tokens', 'Row'), lines, numbers=[1, 2])}"

"""Which scores does the user ask for by name?

`--report.metrics` names metrics of the `evaluate` library. Those in `SHIPPED` come with graftkit, as `evaluate.Metric`
around scikit-learn, and need no network: `evaluate.load("accuracy")` would fetch a script. Any other name is a module
of the Hub, or a local folder, that `evaluate` loads; it runs the code of that module.

They are scored when a run or an evaluation ends, and kept in run.json, so that a report needs neither `evaluate`, which
takes seconds to import, nor the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.report.markdown import decimals, escape, number, shorten, table

if TYPE_CHECKING:
    import evaluate

Scorer = Callable[[np.ndarray, np.ndarray], float]
"""A score of truth (rows,) and of predictions (rows,) or probabilities (rows, labels)."""


@dataclass(frozen=True)
class Shipped:
    """A metric that comes with graftkit."""

    function: str  # of sklearn.metrics
    of_two: Mapping[str, Any]  # its settings where there are two labels; the second counts as the positive one
    of_more: Mapping[str, Any]  # and where there are more
    of_probabilities: bool = False  # or of the likeliest label
    of_all_labels: bool = False  # there is no such score where a label has no row

    def words(self, labels: int) -> str:
        """What computes it, for people."""
        settings = self.of_two if labels == 2 else self.of_more
        told = [f"{setting} {value}" for setting, value in settings.items() if setting != "zero_division"]
        return ", ".join(["scikit-learn", f"`{self.function}`", *told])

    def scorer(self, labels: int) -> Scorer:
        """What computes it."""
        from sklearn import metrics

        function = getattr(metrics, self.function)
        if self.function == "brier_score_loss" and labels != 2:
            function = _brier_score
        score = partial(function, **(self.of_two if labels == 2 else self.of_more))

        def of_rows(truth: np.ndarray, said: np.ndarray) -> float:
            if self.of_all_labels and not np.bincount(truth, minlength=labels).all():
                return math.nan
            return float(score(truth, said[:, 1] if self.of_probabilities and labels == 2 else said))

        return of_rows


def _always(function: str, **settings: Any) -> Shipped:
    return Shipped(function, settings, settings)


def _averaged(name: str) -> dict[str, Shipped]:
    """f1: of the second label of two, and the mean over labels of more; f1_micro and so on whatever the labels."""
    function = f"{name}_score"

    def settings(average: str) -> dict[str, Any]:
        return {"average": average, "zero_division": 0}

    always = {f"{name}_{average}": _always(function, **settings(average)) for average in ("micro", "macro", "weighted")}
    return {name: Shipped(function, settings("binary"), settings("macro"))} | always


_RANKED = {"of_probabilities": True, "of_all_labels": True}
SHIPPED = {
    "accuracy": _always("accuracy_score"),
    "balanced_accuracy": _always("balanced_accuracy_score"),
    **_averaged("f1"),
    **_averaged("precision"),
    **_averaged("recall"),
    **_averaged("jaccard"),
    "matthews_correlation": _always("matthews_corrcoef"),
    "cohen_kappa": _always("cohen_kappa_score"),
    "roc_auc": Shipped("roc_auc_score", {}, {"multi_class": "ovr", "average": "macro"}, **_RANKED),
    "average_precision": Shipped("average_precision_score", {}, {"average": "macro"}, **_RANKED),
    "brier_score": Shipped("brier_score_loss", {}, {}, of_probabilities=True),
}
"""The metrics that come with graftkit, by name."""


def check_metrics(names: Sequence[str] | None, labels: Sequence[str] | None = None) -> None:
    """Raise UserError for a metric that could not be computed, before anything is trained.

    A module that does not come with graftkit is loaded, which may need the network, and, once `labels` are known, tried
    on a few made-up rows.
    """
    known: dict[str, str] = {}
    for name in dict.fromkeys(names or []):
        if _short(name) in SHIPPED and name not in SHIPPED:
            raise UserError(f"--report.metrics {name}: {_short(name)} comes with graftkit; give your own another name")
        other = known.setdefault(_short(name), name)
        if other != name:
            raise UserError(f"--report.metrics: {other} and {name} would both be called {_short(name)}; rename one")
    for name in (name for name in known.values() if name not in SHIPPED):
        module = _load(name)
        if labels is not None:
            truth = np.tile(np.arange(len(labels)), 4)
            predicted = np.where(np.arange(len(truth)) % 5, truth, (truth + 1) % len(labels))
            probabilities = np.full((len(truth), len(labels)), 0.1 / len(labels))
            probabilities[np.arange(len(truth)), predicted] += 0.9
            _compute(name, module, labels, truth, predicted, probabilities)


def measure_named(
    names: Sequence[str], labels: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float | None], list[str]]:
    """The scores of these metrics by name, None where these rows have no such score, and what went wrong, if anything.

    Nothing is raised: at the end of a run, the model is worth more than a score that fails.
    """
    truth, predicted, probabilities = classification.arrays(records, labels)
    found: dict[str, float | None] = {}
    troubles = []
    for name in dict.fromkeys(names):
        try:
            module = _shipped(name, len(labels)) if name in SHIPPED else _load(name)
            found |= _compute(name, module, labels, truth, predicted, probabilities.astype(np.float64))
        except UserError as error:
            troubles.append(str(error))
    return found, troubles


def told(metrics: Mapping[str, Any]) -> list[str]:
    """The table of scores by name for the report, and what it is; nothing where none was asked for."""
    splits = [split for split in ("test", "dev") if metrics.get(split, {}).get("named")]
    if "test" not in splits:
        return []
    labels = len(metrics["test"]["confusion"]["labels"])
    lines = []
    for name in metrics["test"]["named"]:
        values = (metrics[split]["named"].get(name) for split in splits)
        places = decimals(metrics["test"]["rows"] ** -0.5)
        by = SHIPPED[name].words(labels) if name in SHIPPED else "a module of the `evaluate` library"
        lines.append((escape(name), *("–" if value is None else number(value, places) for value in values), by))
    header = ("Asked for by name", *(split.capitalize() for split in splits), "Computed by")
    intro = (
        "These scores were asked for by name (`--report.metrics`). They have no interval, so nobody can say here how "
        "far they would move on other rows. “–”: these rows have no such score."
    )
    return [intro, table(header, lines, numbers=range(1, 1 + len(splits)))]


def _short(name: str) -> str:
    """The last part of a folder or of a Hub id: what a metric is called in the report."""
    return PurePath(name).name.removesuffix(".py")


def _shipped(name: str, labels: int) -> evaluate.Metric:
    """A metric of scikit-learn as a module of `evaluate`."""
    import evaluate
    from datasets import Features, Sequence, Value

    metric = SHIPPED[name]
    scorer = metric.scorer(labels)
    said = Sequence(Value("float64")) if metric.of_probabilities else Value("int64")

    class ScikitLearn(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = Features({"predictions": said, "references": Value("int64")})
            return evaluate.MetricInfo(description=metric.words(labels), citation="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {name: scorer(np.asarray(references), np.asarray(predictions))}

    return ScikitLearn(config_name=name, keep_in_memory=True)


def _load(name: str) -> evaluate.EvaluationModule:
    """The module of that name, by `evaluate`. UserError where there is none, or it does not load."""
    import evaluate

    nearest = get_close_matches(name, SHIPPED, n=1)
    cure = f"did you mean {nearest[0]}?" if nearest else f"those that come with graftkit: {', '.join(SHIPPED)}"
    try:
        return evaluate.load(name, keep_in_memory=True)
    except FileNotFoundError as error:
        raise UserError(
            f"--report.metrics {name}: no such folder here, and the Hub has no such module of evaluate or cannot be "
            f"reached; {cure}"
        ) from error
    except Exception as error:  # code of somebody else, which may raise anything
        raise UserError(f"--report.metrics {name}: evaluate cannot load it ({_line(error)})") from error


def _compute(
    name: str,
    module: evaluate.EvaluationModule,
    labels: Sequence[str],
    truth: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
) -> dict[str, float | None]:
    """The numbers that a module gives, by name; None for one that is not finite."""
    inputs = _inputs(name, module, labels, truth, predicted, probabilities)
    try:
        answer = module.compute(**inputs)
    except Exception as error:  # code of somebody else, which may raise anything
        raise UserError(f"--report.metrics {name}: it fails on these labels ({_line(error)})") from error
    numbers = {key: float(value) for key, value in (answer or {}).items() if np.ndim(value) == 0 and _counts(value)}
    if not numbers:
        raise UserError(f"--report.metrics {name}: it gives no single number; leave it out")
    short = _short(name)
    names = {key: short if key == short or len(numbers) == 1 else f"{short}_{key}" for key in numbers}
    return {names[key]: value if math.isfinite(value) else None for key, value in numbers.items()}


def _counts(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.ndarray) and not isinstance(value, bool)


def _inputs(
    name: str,
    module: evaluate.EvaluationModule,
    labels: Sequence[str],
    truth: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
) -> dict[str, Any]:
    """What a module is called with, by what it says that it takes. UserError where a classifier has no such thing.

    Whole numbers: places in the labels. Words: names of labels. One number a row: the probability of the second of two
    labels. Several: the probability of each label.
    """
    names = np.array(labels, dtype=object)
    takes = module.features if isinstance(module.features, list) else [module.features]
    for features in (dict(one) for one in takes):
        said = {"predictions", "prediction_scores"} & features.keys()
        if len(said) != 1 or features.keys() != said | {"references"}:
            continue
        (key,) = said
        given = {
            "word": lambda: names[predicted].tolist(),
            "whole": lambda: predicted,
            "numbers": lambda: probabilities,
            **({"number": lambda: probabilities[:, 1]} if len(labels) == 2 else {}),
        }.get(_kind(features[key]))
        references = {
            "word": lambda: names[truth].tolist(),
            "words": lambda: [[word] for word in names[truth].tolist()],
            "whole": lambda: truth,
            "number": lambda: truth,
        }.get(_kind(features["references"]))
        if given is not None and references is not None:
            return {key: given(), "references": references()}
    shape = ", or ".join(" ".join(str(dict(one)).split()) for one in takes)
    raise UserError(
        f"--report.metrics {name}: it takes {shorten(shape)}, which a classifier of {len(labels)} labels has not"
    )


def _kind(feature: Any) -> str | None:
    """What a feature of `datasets` holds; None for what no classifier says."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return {"number": "numbers", "word": "words"}.get(_kind(inner) or "")
    dtype = str(getattr(feature, "dtype", ""))
    kinds = {"string": "word", "int": "whole", "uint": "whole", "float": "number"}
    return next((kind for start, kind in kinds.items() if dtype.startswith(start)), None)


def _brier_score(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean squared distance of the probabilities from the truth, 0 to 2 (Brier 1950), as scikit-learn 1.7 has it.

    Its versions before that know two labels alone.
    """
    wrong = probabilities.copy()
    wrong[np.arange(len(truth)), truth] -= 1
    return float((wrong**2).sum(axis=1).mean())


def _line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return shorten(": ".join([type(error).__name__, *said[:1]]))

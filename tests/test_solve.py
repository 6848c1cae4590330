"""Is the head that is computed the best one, and does it end up where plain libraries look for it?"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import load_recipe, run_recipe, texts, write_csv
from safetensors.torch import load_file
from test_features import load
from test_recipe_contract import stop_after
from test_text_classify import tables

from graftkit import solve
from graftkit.adapt import Adapted, ClassifierAdaptConfig
from graftkit.config import parse
from graftkit.errors import Stopped, UserError
from graftkit.images import ImageConfig
from graftkit.learn import ClassifierTrainConfig
from graftkit.linear_head import (
    EXACT,
    STRENGTHS,
    UNIT,
    LinearHead,
    choose_strength,
    sigmoid_loss,
    softmax_loss,
    squared_loss,
)
from graftkit.solve import (
    after_solving,
    answers,
    check_pictures,
    check_solver,
    costs_ignored,
    find_last_layer,
    head_alone,
    layers_before,
    make_problem,
)

HEAD = ("--adapt.strategy", "head")
LABELS = ["a", "b", "c", "d"]


def rows_and_truth(rows: int = 90, features: int = 12):
    """Features of very different scales, one of them constant, and labels that follow from them but for noise."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, features)) @ rng.normal(size=(features, features))).astype(np.float32)
    x *= np.geomspace(0.1, 30, features).astype(np.float32)
    x[:, 3] = 7
    logits = standardised(x)[:, :4] + rng.normal(size=(rows, 4))
    return x, [LABELS[i] for i in logits.argmax(1)]


def standardised(x):
    """What L2 counts weights of; without the constant."""
    spread = x.astype(np.float64).std(0)
    return (x - x.mean(0, dtype=np.float64))[:, spread > 0] / spread[spread > 0]


# the problem


@pytest.mark.parametrize("bias", [True, False])
def test_the_solution_is_that_of_scikit_learn(bias):
    from sklearn.linear_model import LogisticRegression

    x, truth = rows_and_truth()
    weight, intercept = make_problem(SimpleNamespace(labels=LABELS), x, truth, bias=bias).solve(0.03, exact=True)
    scale = 1.0 if bias else np.sqrt((x.astype(np.float64) ** 2).mean(0))
    z = standardised(x) if bias else x / scale
    theirs = LogisticRegression(C=1 / (0.03 * len(x)), fit_intercept=bias, tol=1e-10, max_iter=10_000)
    wanted = theirs.fit(z, truth).decision_function(z)
    found = x @ weight + (intercept if bias else 0.0)
    assert (intercept is None) != bias
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True), atol=1e-4)


def test_more_features_than_rows_have_one_solution_too():
    from sklearn.linear_model import LogisticRegression

    x, truth = rows_and_truth(rows=20, features=50)
    weight, intercept = make_problem(SimpleNamespace(labels=LABELS), x, truth, bias=True).solve(0.1, exact=True)
    theirs = LogisticRegression(C=1 / (0.1 * 20), tol=1e-10, max_iter=10_000).fit(standardised(x), truth)
    found, wanted = x @ weight + intercept, theirs.decision_function(standardised(x))
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True), atol=1e-4)


def test_many_labels_are_a_regression_each():
    from sklearn.linear_model import LogisticRegression

    x, truth = rows_and_truth()
    sets = [[label, "d"] if i % 3 == 0 and label != "d" else [label] for i, label in enumerate(truth)]
    weight, intercept = make_problem(SimpleNamespace(labels=LABELS), x, sets, bias=True).solve(0.05, exact=True)
    for place, label in enumerate(LABELS):
        has = [label in labels for labels in sets]
        theirs = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-10, max_iter=10_000).fit(standardised(x), has)
        wanted = theirs.decision_function(standardised(x))
        np.testing.assert_allclose((x @ weight + intercept)[:, place], wanted, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_numbers_are_a_ridge_regression(bias):
    from sklearn.linear_model import Ridge

    x, _ = rows_and_truth()
    numbers = (100 + x[:, 5] * 3).tolist()
    task = SimpleNamespace(mean=float(np.mean(numbers)), sd=float(np.std(numbers)))
    weight, intercept = make_problem(task, x, numbers, bias=bias).solve(0.1, exact=True)
    z = standardised(x) if bias else x / np.sqrt((x.astype(np.float64) ** 2).mean(0))
    theirs = Ridge(alpha=0.1 * len(x), fit_intercept=bias, tol=1e-12).fit(z, numbers)
    found = (x @ weight)[:, 0] * task.sd
    found += intercept[0] * task.sd + task.mean if bias else 0.0
    np.testing.assert_allclose(found, theirs.predict(z), rtol=1e-4)


@pytest.mark.parametrize(("loss", "curvature"), [(softmax_loss, 0.02), (sigmoid_loss, 0.05), (squared_loss, 1.0)])
def test_the_gradient_is_that_of_the_loss_and_nothing_at_the_solution(loss, curvature):
    x, truth = rows_and_truth()
    targets = np.eye(4)[[LABELS.index(label) for label in truth]]
    problem = LinearHead(x, targets, loss, curvature, bias=True)
    weight = torch.randn(len(problem.variances), 4, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    value, by_weight, by_bias = problem.measure(weight, bias, 0.1, exact=True)
    for values, gradient in ((weight, by_weight), (bias, by_bias)):
        values.view(-1)[1] += 1e-6
        moved = problem.measure(weight, bias, 0.1, exact=True)[0]
        values.view(-1)[1] -= 1e-6
        assert (moved - value) / 1e-6 == pytest.approx(gradient.flatten()[1].item(), rel=1e-3)
    problem.solve(0.1, exact=True)
    found = problem.solutions[0.1]
    _, by_weight, by_bias = problem.measure(found.weight, found.bias, 0.1, exact=True)
    assert max(by_weight.abs().max(), by_bias.abs().max()) < 30 * EXACT["tolerance_grad"] / UNIT


@pytest.mark.parametrize(
    ("scores", "losses", "rows", "lower", "best", "tried"),
    [
        ([0.1, 0.5, 0.6, 0.6, 0.5, 0.9], [5, 4, 3, 3, 3, 3], 1000, False, 4.0**-2, 5),
        ([0.5, 0.92, 0.90, 0.91, 0.91], [5, 4, 3, 4, 5], 400, False, 4.0**-2, 5),  # 0.02 may be chance
        ([0.5, 0.92, 0.90, 0.91, 0.91], [5, 4, 3, 4, 5], 10_000, False, 4.0**-1, 5),  # not of so many rows
        ([0.5, 0.4, 0.8, 0.7, 0.7, 0.7], [1, 2, 3, 4, 5, 6], 100, False, 4.0**-2, 5),  # a rare label, never answered
        ([3.0, 2.0, 2.5, 2.5, 1.0], [5, 4, 4.1, 4.2, 4], 100, True, 0.25, 4),
        ([0.4, 0.4, 0.4, 0.4, 0.4, 0.7, 0.6, 0.6], [9, 8, 7, 6, 5, 4, 5, 5], 100, False, 4.0**-5, 8),
        ([0.4, 0.4, 0.4, 0.4, 0.4], [9, 8, 7, 7, 9], 100, False, 4.0**-2, 5),  # of equal ones the stronger
        ([np.nan, 0.1, np.nan, np.nan], [np.nan, 5, np.nan, np.nan], 100, False, 0.25, 4),
        ([0.5, 0.4, 0.4, 0.6, 0.5, 0.5], [5, 5, 5, 4, 5, 5], 100, False, 4.0, 6),  # stronger ones still
    ],
)
def test_the_strength_has_about_the_best_score_on_dev_and_the_lowest_loss(scores, losses, rows, lower, best, tried):
    asked, left = [], iter(zip(scores, losses, strict=True))

    def ask(strength):
        asked.append(strength)
        return next(left)

    found, strength = choose_strength(ask, rows, lower=lower)
    assert strength == best
    assert len(asked) == tried
    assert asked == [one["strength"] for one in found]


@pytest.mark.parametrize("seed", range(3))
def test_a_rare_label_is_not_given_up_where_strong_heads_never_answer_it(seed):
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, 64)) * 0.25

    def draw(rows):
        labels = (rng.random(rows) < 0.05).astype(int)
        labels[:2] = 0, 1
        return (means[labels] + rng.normal(size=(rows, 64))).astype(np.float32), labels

    (x, y), (dev, truth) = draw(1000), draw(400)
    problem = make_problem(SimpleNamespace(labels=LABELS[:2]), x, [LABELS[i] for i in y], bias=True)
    targets = np.eye(2)[truth]

    def ask(strength):
        logits = answers(dev, *problem.solve(strength, exact=False))
        return f1_score(truth, logits.argmax(1), average="macro"), problem.mean_loss(logits, targets)

    tried, best = choose_strength(ask, len(dev), lower=False)
    scores = {one["strength"]: one["score"] for one in tried}
    assert max(ask(strength)[0] for strength in STRENGTHS) == pytest.approx(max(scores.values()), abs=0.01)
    assert scores[best] > tried[0]["score"] + 0.05


def test_what_an_answer_costs_in_training_is_nothing_to_the_solution():
    assert costs_ignored(vars(ClassifierTrainConfig())) == []
    assert costs_ignored(vars(ClassifierTrainConfig(focal=2.0, sampling="balanced"))) == [
        "--train.sampling",
        "--train.focal",
    ]
    assert costs_ignored({"lr": 1e-3}) == []


# the layer


@pytest.mark.parametrize(
    ("kind", "name", "before"),
    [
        ("bert", "classifier", []),
        ("roberta", "classifier.out_proj", ["classifier.dense"]),
        ("distilbert", "classifier", ["pre_classifier"]),
        ("gpt2", "score", []),
        ("llama", "score", []),
    ],
)
def test_the_last_layer_is_found_by_trying(checkpoint, kind, name, before):
    task, headed, rows = load(checkpoint(kind))
    weights = {key: value.clone() for key, value in headed.model.state_dict().items()}
    layer = find_last_layer(task, headed.model.eval(), [rows[i] for i in range(4)])
    assert layer is headed.model.get_submodule(name)
    assert layers_before(Adapted(headed.model, headed.head, ""), layer) == before
    assert all(torch.equal(value, weights[key]) for key, value in headed.model.state_dict().items())


@pytest.mark.parametrize(("strategy", "stays"), [("head", True), ("lp_ft", False)])
def test_what_comes_before_the_solved_layer_stays_random_where_nothing_trains_after_it(strategy, stays):
    said = []
    run = SimpleNamespace(
        config={"adapt": {"strategy": strategy}},
        headline="accuracy",
        say=lambda line, warning=False: said.append((line, warning)),
    )
    solved = {"rows": 8, "features": 4, "tried": [1, 2], "strength": 0.1, "score": 0.5, "unsolved": ["dense"]}
    solve._tell(run, {**solved, "seconds": {"features": 1.0, "solve": 2.0}})
    (_, plain), (line, warning) = said
    assert (plain, warning) == (False, True)
    assert "(dense) is new and random" in line
    assert line.endswith("and stays so") == stays


def test_rows_of_which_the_network_says_no_numbers_are_told(monkeypatch):
    said = [{"label": "a", "features": np.array([0.0, value], dtype=np.float32)} for value in (1, np.nan, np.inf)]
    monkeypatch.setattr(solve, "predict_rows", lambda *_: said)
    rows = [{"id": f"train:{number}"} for number in (1, 2, 3)]
    with pytest.raises(UserError, match=r"not finite, .*: train:2, train:3; .*--run\.precision fp32$"):
        solve.features_of(SimpleNamespace(accelerator=None), None, None, rows, None, None)


def test_a_network_with_two_last_layers_is_refused(checkpoint):
    task, headed, rows = load(checkpoint("bert"))
    model = headed.model.eval()
    model.classifier = torch.nn.ModuleList([model.classifier, torch.nn.Linear(32, 3)])
    model.classifier.forward = lambda x: model.classifier[0](x) + model.classifier[1](x)
    with pytest.raises(UserError, match="do not come from one last linear layer"):
        find_last_layer(task, model, [rows[i] for i in range(4)])


def test_only_the_head_trains_for_a_while(checkpoint):
    _, headed, _ = load(checkpoint("bert"))
    with head_alone(Adapted(headed.model, headed.head, "")):
        assert {name for name, p in headed.model.named_parameters() if p.requires_grad} == headed.head
    assert all(p.requires_grad for p in headed.model.parameters())


# which settings go together


USUAL = ClassifierTrainConfig()


@pytest.mark.parametrize(
    ("adapt", "train", "said"),
    [
        ({"strategy": "head"}, {"epochs": 4}, "--train.epochs does nothing .* --adapt.solver sgd"),
        ({"strategy": "head"}, {"label_smoothing": 0.1}, "--train.label_smoothing does nothing"),
        ({"strategy": "lp_ft"}, {"head_first": 0.1}, "--train.head_first does nothing"),
    ],
)
def test_settings_of_training_that_would_do_nothing_are_refused(adapt, train, said):
    with pytest.raises(UserError, match=said):
        check_solver(ClassifierAdaptConfig(**adapt), replace(USUAL, **train), USUAL)


def test_what_does_something_is_not_refused():
    check_solver(ClassifierAdaptConfig(strategy="head", solver="sgd"), replace(USUAL, epochs=4), USUAL)
    check_solver(ClassifierAdaptConfig(strategy="head"), USUAL, USUAL)
    check_solver(ClassifierAdaptConfig(strategy="lp_ft"), replace(USUAL, epochs=4), USUAL)
    check_pictures(ClassifierAdaptConfig(strategy="head"), ImageConfig(augment="none"))
    check_pictures(ClassifierAdaptConfig(strategy="head", views=3), ImageConfig(augment="trivial", flip=False))
    check_pictures(ClassifierAdaptConfig(), ImageConfig(mixup=0.2))


@pytest.mark.parametrize("strategy", ["full", "last", "lora", "lp_ft"])
def test_sgd_is_refused_where_no_head_is_solved(strategy):
    with pytest.raises(UserError, match=f"--adapt.solver sgd does nothing with --adapt.strategy {strategy}"):
        ClassifierAdaptConfig(strategy=strategy, solver="sgd")


@pytest.mark.parametrize(
    "changed",
    [
        {"augment": "rand"},
        {"crop": 0.5},
        {"flip": True},
        {"flip": False},
        {"erase": 0.2},
        {"mixup": 0.2},
        {"cutmix": 1.0},
    ],
)
def test_changes_to_pictures_that_nobody_would_see_are_refused(changed):
    with pytest.raises(UserError, match=f"--image.{next(iter(changed))} .*--adapt.solver sgd"):
        check_pictures(ClassifierAdaptConfig(strategy="head"), ImageConfig(**changed))


@pytest.mark.parametrize(
    ("flags", "flip"),
    [
        (["--adapt.strategy", "head"], None),
        (["--adapt.strategy", "head", "--adapt.views", "2"], True),
        (["--adapt.strategy", "head", "--adapt.solver", "sgd"], True),
        ([], True),
        (["--data.path", "demo"], False),
        (["--image.augment", "none"], None),
        (["--image.flip", "false"], False),
    ],
)
def test_what_the_recipe_sets_itself_is_not_taken_for_the_users(flags, flip):
    recipe = load_recipe("image_classify")
    settled = recipe.settle_flip(parse(recipe.Config, ["--data.path", "flowers", *flags]))
    assert settled.image.flip is flip
    recipe.check(settled)  # so it is asked again, for each of several seeds, and of a kept config.yaml


def test_a_solved_head_learns_at_the_rate_of_all_else():
    adapt = ClassifierAdaptConfig(strategy="lp_ft")
    assert after_solving(adapt, replace(USUAL, lr="auto")) == replace(USUAL, lr="auto", head_factor=1.0)
    for left in (adapt, replace(USUAL, head_lr=1e-3)), (ClassifierAdaptConfig(), USUAL):
        assert after_solving(*left) == left[1]


# end to end


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def train(out, checkpoint, data, *words):
    """A run's folder and its metrics."""
    command = ("--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--run.precision", "fp32")
    return out, run_recipe("text_classify", *command, *words)


def record_of(out):
    return json.loads((out / "run.json").read_text())


@pytest.mark.slow
def test_a_solved_head_is_plain_transformers_and_the_same_again(tmp_path, checkpoint, data):
    from transformers import pipeline

    source = checkpoint("roberta")
    out, _ = train(tmp_path / "run", source, data, *HEAD)
    said, rows = tables(out)
    answers = pipeline("text-classification", str(out / "model"), dtype="float32")(said, top_k=None)
    for row, answer in zip(rows, answers, strict=True):
        for entry in answer:
            assert entry["score"] == pytest.approx(row[f"probability:{entry['label']}"], abs=1e-4)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    for name, value in before.items():
        assert name.startswith("pooler") or torch.equal(after[f"roberta.{name}"], value)
    record = record_of(out)
    assert "training" not in record
    solved = record["solver"]
    assert (solved["rows"], solved["features"], solved["unsolved"]) == (47, 32, ["classifier.dense"])
    assert solved["score"] == pytest.approx(max(one["score"] for one in solved["tried"]), abs=0.1)
    assert any("classifier.dense) is new and random" in warning for warning in record["warnings"])
    report = (out / "report.md").read_text()
    assert "computed" in report
    files = ("model/model.safetensors", "predictions-test.parquet", "metrics.json", "log.jsonl")
    made = {name: (out / name).read_bytes() for name in files}
    train(tmp_path / "run", source, data, *HEAD, "--run.resume")
    assert made == {name: (out / name).read_bytes() for name in files}


def test_numbers_and_sets_are_solved(tmp_path, checkpoint):
    rows = [(text, str(20 + 5 * len(text.split()))) for text, _ in texts(60)]
    out, metrics = train(
        tmp_path / "numbers",
        checkpoint("gpt2"),
        write_csv(tmp_path / "n.csv", rows),
        *HEAD,
        "--data.task",
        "regression",
    )
    assert metrics["test"]["scores"]["pearson"] > 0.5
    rows = [
        (f"{text} {'here' * (i % 2)}", f"{label}|odd" if i % 2 else label) for i, (text, label) in enumerate(texts(60))
    ]
    out, _ = train(
        tmp_path / "sets", checkpoint("bert"), write_csv(tmp_path / "s.csv", rows), *HEAD, "--data.task", "multi"
    )
    assert record_of(out)["solver"]["score"] > 0


@pytest.mark.parametrize(("words", "rows"), [((), 31), (("--adapt.views", 3), 93)])
def test_pictures_are_solved_as_evaluation_sees_them_or_in_views(tmp_path, image_checkpoint, pictures, words, rows):
    command = ("--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--image.workers", 0)
    run_recipe("image_classify", *command, "--run.out", tmp_path / "run", "--run.precision", "fp32", *HEAD, *words)
    record = record_of(tmp_path / "run")
    assert record["solver"]["rows"] == rows
    assert record["cache"]["views"] == (3 if words else None)
    table = pq.read_table(tmp_path / "run" / "predictions-dev.parquet").to_pylist()
    assert {row["prediction"] for row in table} <= {"disc", "square", "stripes"}


def test_everything_trains_from_the_solved_head(tmp_path, checkpoint, data):
    source = checkpoint("bert")
    words = ("--train.epochs", 2, "--train.batch_size", 8, "--train.lr", 1e-3)
    out, _ = train(tmp_path / "run", source, data, "--adapt.strategy", "lp_ft", *words)
    first = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    plain, _ = train(tmp_path / "plain", source, data, *words)
    assert first["loss"] < 0.9 * json.loads((plain / "log.jsonl").read_text().splitlines()[0])["loss"]
    before, after = load_file(source / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    assert not torch.equal(
        before["encoder.layer.0.output.dense.weight"], after["bert.encoder.layer.0.output.dense.weight"]
    )
    record = record_of(out)
    assert record["adapt"]["trained_parameters"] == record["adapt"]["total_parameters"]
    assert record["solver"]["rows"] == record["cache"]["rows"][0] == 47
    assert record["training"]["updates"] == 12


@pytest.mark.slow
def test_lp_ft_that_was_stopped_and_resumed_ends_as_one_that_never_stopped(tmp_path, checkpoint, data, monkeypatch):
    words = ("--adapt.strategy", "lp_ft", "--train.epochs", 2, "--train.batch_size", 8, "--train.lr", 1e-3)
    source = checkpoint("bert", dropout=0.1)
    whole, _ = train(tmp_path / "whole", source, data, *words)
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Stopped, match="after update 3"):
            train(tmp_path / "parts", source, data, *words)
    parts, _ = train(tmp_path / "parts", source, data, *words, "--run.resume")
    for name in ("model/model.safetensors", "predictions-test.parquet", "log.jsonl", "metrics.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_dry_run_says_what_a_solved_head_takes(tmp_path, checkpoint, data, capsys):
    _, estimate = train(tmp_path / "run", checkpoint("bert"), data, *HEAD, "--run.dry_run")
    assert estimate["updates"] == 0
    assert estimate["seconds"] > 0
    assert "solved" in capsys.readouterr().out

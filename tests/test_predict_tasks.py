"""Does `graft predict` answer for tasks that choose no label as the task itself would, knowing the truth?"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import texts
from test_cli import write, write_jsonl

from graftkit import cli
from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.heads import load_answerer, load_classifier
from graftkit.text import load_tokenizer

LABELS = ["bird", "fruit", "tool"]
ROWS = [text for text, _ in texts(12)]
STRATEGIES = ["full", "lora"]


@dataclass
class Saved:
    """A model that nobody trained, whose answers differ from row to row, in its folder."""

    task: Any
    model: Any
    folder: Any

    def records(self, rows):
        """What the task says of rows of which it knows the truth, each by itself."""
        import torch

        with torch.no_grad():
            batches = [self.task.collate([self.task.encode({"id": "0", **row}, None)]) for row in rows]
            return [self.task.predict(self.model, batch)[0] for batch in batches]


def stir(model):
    """Large weights, and an adapter that changes something."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=2.0)
            elif parameter.ndim == 2 and "lora" not in name:
                parameter *= 8
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, checkpoint):
    """Makes such a folder: of a task that a tokenizer gives, with the head that it needs."""

    def make(task_of, head_of, strategy, kind="bert"):
        config = BackboneConfig(name=str(checkpoint(kind)))
        tokenizer = load_tokenizer(config)
        task, headed = task_of(tokenizer), head_of(config, tokenizer)
        if strategy == "full":
            stir(headed.model)  # of an adapter, the base must stay as it is on the disk
        model = stir(adapt(headed, AdaptConfig(strategy=strategy)).model) if strategy == "lora" else headed.model.eval()
        folder = tmp_path_factory.mktemp(task.name) / "model"
        task.save(folder, model)
        return Saved(task, task.load(folder), folder)

    return make


@pytest.fixture
def refused(capsys):
    """Runs `graft predict` in this process; the one line that it refuses with."""

    def call(*words):
        assert cli.main(["predict", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("error: ")
        return captured.err

    return call


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# any number of labels


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_label_sets_follow_the_thresholds_of_the_model(saved, predict, tmp_path, strategy):
    from graftkit.tasks.multi_label_classification import MultiLabelClassification

    def task_of(tokenizer):
        task = MultiLabelClassification(tokenizer, LABELS)
        task.thresholds = np.array([0.3, 0.5, 0.9])
        return task

    made = saved(
        task_of, lambda *of: load_classifier(of[0], LABELS, of[1], 0, MultiLabelClassification.problem_type), strategy
    )
    file = write(tmp_path / "rows.txt", "\n".join(ROWS))
    answers = predict(made.folder, file)
    records = made.records({"text": text, "labels": ["bird"]} for text in ROWS)
    assert [answer["labels"] for answer in answers] == [record["prediction"] for record in records]
    assert len({tuple(answer["labels"]) for answer in answers}) > 1
    for answer, record in zip(answers, records, strict=True):
        assert list(answer["probabilities"]) == LABELS
        assert list(answer["probabilities"].values()) == pytest.approx(record["probabilities"].tolist(), abs=1e-5)
    predict(made.folder, file, "--output", tmp_path / "out.csv")
    first = read_csv(tmp_path / "out.csv")[0]
    assert list(first) == ["row", "labels", "probability:bird", "probability:fruit", "probability:tool"]
    assert json.loads(first["labels"]) == answers[0]["labels"]


# a number


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_number_is_the_one_of_the_task(saved, predict, tmp_path, strategy):
    from graftkit.tasks.text_regression import TextRegression

    made = saved(
        lambda tokenizer: TextRegression(tokenizer, "stars", 0.0, 1.0, folded=True),
        lambda *of: load_classifier(of[0], ["stars"], of[1], 0, TextRegression.problem_type),
        strategy,
    )
    answers = predict(made.folder, write(tmp_path / "rows.txt", "\n".join(ROWS)))
    expected = [record["prediction"] for record in made.records({"text": text, "label": 3.0} for text in ROWS)]
    assert [list(answer) for answer in answers] == [["row", "score"]] * len(ROWS)
    assert [answer["score"] for answer in answers] == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.01


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"num_labels": 1}, ["row", "score"]), ({"problem_type": "multi_label_classification"}, ["row", "labels"])],
)
def test_models_of_others_are_told_by_their_settings(checkpoint, predict, tmp_path, settings, names):
    import shutil

    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = shutil.copytree(checkpoint("bert", headless=False), tmp_path / "other")
    config = AutoConfig.from_pretrained(folder, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (answer,) = predict(folder, write(tmp_path / "a.txt", "a\n"))
    assert list(answer)[:2] == names


def test_several_numbers_at_once_are_refused(checkpoint, refused, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint("bert", headless=False), tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", json.dumps({**settings, "problem_type": "regression"}))
    assert "this model gives 2 numbers at once" in refused(folder, write(tmp_path / "a.txt", "a\n"))


# answers in a text


@pytest.mark.parametrize(("strategy", "no_answer"), [("full", False), ("full", True), ("lora", True)])
def test_an_answer_is_the_one_of_the_task(saved, predict, tmp_path, strategy, no_answer):
    from graftkit.tasks.question_answering import QuestionAnswering

    def task_of(tokenizer):
        return QuestionAnswering(tokenizer, no_answer=no_answer, max_tokens=4)

    made = saved(task_of, lambda *of: load_answerer(*of, 0), strategy)
    contexts = [" ".join(ROWS[i : i + 6]) for i in range(6)]  # more than a window
    rows = [{"question": text, "context": context} for text, context in zip(ROWS[6:], contexts, strict=True)]
    true = [{**row, "answers": ["saw"], "starts": [0]} for row in rows]
    if no_answer:  # a threshold that withholds some
        made.task.threshold = float(np.median([record["null_gap"] for record in made.records(true)]))
        made.task.save(made.folder, made.model)
    answers, records = predict(made.folder, write_jsonl(tmp_path / "rows.jsonl", rows)), made.records(true)
    assert any(not answer["answer"] for answer in answers) == no_answer
    assert max(record["windows"] for record in records) > 1
    assert [answer["answer"] for answer in answers] == [record["prediction"] for record in records]
    assert len({answer["answer"] for answer in answers}) > 1
    for answer, record, row in zip(answers, records, rows, strict=True):
        assert list(answer) == ["row", "answer", "start", "score"]
        assert answer["score"] == pytest.approx(record["score"], abs=1e-3)
        if answer["answer"]:
            assert row["context"][answer["start"] :].startswith(answer["answer"])
        else:
            assert answer["start"] is None


def test_a_question_needs_its_text(saved, refused, tmp_path):
    from graftkit.tasks.question_answering import QuestionAnswering

    made = saved(
        lambda tokenizer: QuestionAnswering(tokenizer, no_answer=False), lambda *of: load_answerer(*of, 0), "full"
    )
    for name, content, expected in (
        (
            "a.csv",
            "question,b\na,b\n",
            "which column is the context cannot be told; found 'question', 'b'. Set --context",
        ),
        ("a.csv", "query,passage\na,\n", "column 'passage', row 1: empty or missing; every row needs a text"),
        ("a.txt", "a\n", "a row is more than a line of text. Write csv or jsonl, and set --format"),
    ):
        assert expected in refused(made.folder, write(tmp_path / name, content))


# texts that are written


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A T5 that nobody trained, as the task saves it, in the folder of a run with a prefix."""
    from graftkit.scratch import MAKERS
    from graftkit.tasks.sequence_to_sequence import GenerateConfig, SequenceToSequence, TargetConfig, load_writer

    start = tmp_path_factory.mktemp("t5")
    MAKERS["demo-t5"](start)
    config, run = BackboneConfig(name=str(start)), tmp_path_factory.mktemp("run")
    task = SequenceToSequence(
        load_tokenizer(config), "say: ", TargetConfig(), GenerateConfig(beams=2, max_new_tokens=5)
    )
    task.save(run / "model", stir(load_writer(config, 0).model))
    columns = {"source": "written", "target": "spoken"}
    write(run / "run.json", json.dumps({"task": task.name, "data": {"prefix": "say: ", "columns": columns}}))
    return Saved(task, task.load(run / "model"), run)


def test_a_text_is_the_one_of_the_task(translator, predict, tmp_path):
    rows = [{"text": "no", "written": text} for text in ROWS[:5]]
    answers = predict(translator.folder, write_jsonl(tmp_path / "rows.jsonl", rows))
    records = translator.records({"source": text, "target": "one"} for text in ROWS[:5])
    assert [answer["text"] for answer in answers] == [record["prediction"] for record in records]
    assert len({answer["text"] for answer in answers}) > 1
    unknown = predict(translator.folder, write(tmp_path / "rows.txt", ROWS[0]))
    assert unknown == answers[:1]


@pytest.fixture(scope="module")
def writer(tmp_path_factory, checkpoint):
    """Makes a causal model as the task saves it, with or without a chat template."""
    from graftkit.data.turns import Reader
    from graftkit.generation import GenerateConfig
    from graftkit.heads import load_headless
    from graftkit.tasks.causal_language_modelling import CausalLanguageModelling

    def make(columns, template=None):
        config = BackboneConfig(name=str(checkpoint("gpt2")))
        tokenizer = load_tokenizer(config)
        tokenizer.chat_template = template
        task = CausalLanguageModelling(Reader(tokenizer), list(columns), GenerateConfig(max_new_tokens=6))
        run = tmp_path_factory.mktemp("run")
        headed = load_headless(config, "AutoModelForCausalLM", "CAUSAL_LM", 0)
        task.save(run / "model", headed.model.eval())
        write(run / "run.json", json.dumps({"task": task.name, "data": {"columns": columns}}))
        return Saved(task, task.load(run / "model"), run)

    return make


def test_a_prompt_is_gone_on_from_alike_each_time(writer, predict, tmp_path):
    made = writer({"prompt": "ask", "completion": "say"})
    rows = [{"ask": text, "text": "no"} for text in [ROWS[0], *ROWS[:4]]]
    answers = predict(made.folder, write_jsonl(tmp_path / "rows.jsonl", rows))
    expected = [
        made.task.write(made.model, {"prompt": row["ask"], "completion": ""}, seed)[1]
        for seed, row in enumerate(rows, 1)
    ]
    assert [answer["text"] for answer in answers] == expected
    assert answers[0]["text"] != answers[1]["text"]  # the same prompt, drawn by another number
    assert predict(made.folder, tmp_path / "rows.jsonl") == answers
    lines = write(tmp_path / "rows.txt", "\n".join(row["ask"] for row in rows))
    assert predict(made.folder, lines) == answers


def test_a_model_of_documents_goes_on_from_all_of_a_text(writer, predict, tmp_path):
    made = writer({"text": "text"})
    reader = made.task.reader
    asked = reader.ask({"text": ROWS[0]})
    assert asked == reader.read({"text": ROWS[0]}).ids[:-1]  # all but the end
    (answer,) = predict(made.folder, write(tmp_path / "rows.txt", ROWS[0]))
    assert answer["text"] == made.task.go_on(made.model, asked, seed=1)


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}"
    "{% endif %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_messages_are_written_as_the_template_says(writer, predict, refused, tmp_path):
    made = writer({"messages": "messages"}, TEMPLATE)
    said = [("user", "the old saw"), ("assistant", "a robin"), ("user", "again")]
    messages = [{"role": role, "content": content} for role, content in said]
    asked = made.task.reader.ask({"messages": messages})
    whole = made.task.reader.read({"chat": json.dumps([*messages, {"role": "assistant", "content": "fine"}])}).ids
    assert whole[: len(asked)] == asked
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}, {"messages": json.dumps(messages)}])
    answers = predict(made.folder, file)
    assert [answer["text"] for answer in answers] == [made.task.go_on(made.model, asked, seed) for seed in (1, 2)]
    prompt = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the old saw"}])
    (answer,) = predict(made.folder, prompt)
    asked = made.task.reader.ask({"messages": messages[:1]})
    assert answer["text"] == made.task.go_on(made.model, asked, seed=1)
    for row, expected in (
        ([], "row 1: empty or no list; every row needs a list of messages"),
        ([{"role": "user"}], "row 1: {'role': 'user'} is no message, such as"),
        (messages[:2], "row 1: the assistant has answered already. Leave the last message out"),
        ("hello", "row 1: a list of messages is a list, or JSON of one"),
        ([{"role": "boss", "content": "a"}], "row 1: a chat that the chat template refuses (no such role)"),
    ):
        assert expected in refused(made.folder, write_jsonl(tmp_path / "bad.jsonl", [{"messages": row}]))
    plain = writer({"prompt": "prompt"})
    assert "row 1: its tokenizer has no chat template" in refused(plain.folder, file)


# what only transformers does


def test_masked_words_are_left_to_the_pipeline(checkpoint, refused, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint("bert"), tmp_path / "masked")
    settings = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", json.dumps({**settings, "architectures": ["BertForMaskedLM"]}))
    line = refused(folder, write(tmp_path / "a.txt", "a\n"))
    assert f"fills in words that are masked, which is not done here; ask pipeline('fill-mask', '{folder}')" in line

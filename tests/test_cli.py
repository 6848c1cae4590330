"""Does `graft` answer every row, once, in order, with the run's own numbers, and say in one line why not?"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from threading import Timer

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import run_recipe, texts

from graftkit import answering, cli
from graftkit import predict as verb
from graftkit.data import stream
from graftkit.errors import UserError
from graftkit.export import load_saved, save_model

CLASSIFIER = "AutoModelForSequenceClassification"
GRAFT = [sys.executable, "-c", "import sys; from graftkit.cli import main; sys.exit(main())"]
TEXT = answering.TEXT
LONG = "the old red file is here again " * 40  # of what a tiny checkpoint reads, the first 40 tokens


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, checkpoint):
    """Makes a tiny checkpoint whose answers differ from text to text (its weights are not small), with a head of 2."""
    import torch
    from transformers import AutoModelForSequenceClassification

    def make(kind, headless=False):
        folder = tmp_path_factory.mktemp(kind) / "model"
        shutil.copytree(checkpoint(kind, headless=False), folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter *= 8
        (model.base_model if headless else model).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, classifier, data):
    """A run of the recipe that reads 8 tokens of a text, fewer than most have."""
    out = tmp_path_factory.mktemp("runs") / "run"
    backbone = ("--backbone.name", classifier("bert"), "--backbone.max_length", 8)
    training = ("--train.epochs", 3, "--train.head_lr", 0.1)
    run_recipe("text_classify", *backbone, *training, "--data.path", data, "--run.out", out)
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, classifier):
    """An adapter whose update is not zero, with a new head of three labels."""
    import torch

    from graftkit.adapt import AdaptConfig, adapt
    from graftkit.backbone import BackboneConfig
    from graftkit.heads import load_classifier
    from graftkit.text import load_tokenizer

    config = BackboneConfig(name=str(classifier("bert", headless=True)))
    tokenizer, labels = load_tokenizer(config), ["bird", "fruit", "Werkzeug ü"]
    model = adapt(load_classifier(config, labels, tokenizer, seed=0), AdaptConfig(strategy="lora")).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    save_model(folder, model, tokenizer, labels)
    return folder


@pytest.fixture
def refused(capsys):
    """Runs `graft predict` in this process; the one line that it refuses with."""

    def call(*words):
        assert cli.main(["predict", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("error: ")
        return captured.err

    return call


def one_by_one(model, tokenizer, rows):
    """The probabilities of each row, with no padding anywhere: (rows, labels)."""
    import torch

    with torch.no_grad():
        inputs = [tokenizer(*row, truncation=True, max_length=40, return_tensors="pt") for row in rows]
        return np.array([model(**each).logits.softmax(-1)[0].tolist() for each in inputs])


def check(answers, expected):
    """The probabilities are the expected ones, (rows, labels), and these tell the rows apart."""
    assert np.ptp(expected, axis=0).max() > 0.02
    answered = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(answered, expected, atol=1e-4)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# the answers


def test_a_run_answers_with_the_numbers_of_its_table(run, data, predict):
    table = parquet.read_table(run / "predictions-test.parquet").to_pylist()
    answers = predict(run, data / "test.csv")
    assert [f"test-{answer['row']}" for answer in answers] == [row["id"] for row in table]
    check(answers, [[row[f"probability:{label}"] for label in ("bird", "fruit", "tool")] for row in table])
    for answer, row in zip(answers, table, strict=True):
        assert answer["label"] == row["prediction"]
        shares = answer["probabilities"]
        assert answer["probability"] == shares[answer["label"]] == max(shares.values())
    assert predict(run / "model", data / "test.csv") == answers


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("rows.tsv", "\t"),
        ("semicolons.csv", ";"),
        ("rows.jsonl", None),
        ("rows.txt", None),
    ],
)
def test_every_format_gives_the_same_answers(run, data, predict, tmp_path, name, form):
    expected = predict(run, data / "test.csv")
    rows = [text for text, _ in texts(19, seed=3)]
    file = tmp_path / name
    if form:
        file.write_text("\ufeffmore" + form + "text\r\n\r\n" + "".join(f'0{form}"{text}"\r\n' for text in rows))
    elif name == "rows.txt":
        file.write_text("\n".join(rows))  # the last line does not end
    else:
        write_jsonl(file, [{"text": text, "more": [1]} for text in rows])
    assert_same(predict(run, file), expected)
    unnamed = file.rename(tmp_path / "unnamed")
    assert_same(predict(run, unnamed, "--format", name.split(".")[1]), expected)


def assert_same(answers, expected):
    """The same but for the last digit: how rows arrive decides which are padded together."""
    assert [(a["row"], a["label"]) for a in answers] == [(e["row"], e["label"]) for e in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_csv_output_holds_the_same_and_stays_whole(run, data, predict, tmp_path):
    expected = predict(run, data / "test.csv")
    for suffix in ("csv", "jsonl"):
        assert predict(run, data / "test.csv", "--output", tmp_path / f"out.{suffix}") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").open(encoding="utf-8")] == expected
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, answer in zip(rows, expected, strict=True):
        flat = {f"probability:{label}": str(value) for label, value in answer["probabilities"].items()}
        assert (
            row
            == {"row": str(answer["row"]), "label": answer["label"], "probability": str(answer["probability"])} | flat
        )


@pytest.mark.parametrize("chunk", [4, 1024])
def test_an_adapter_answers_by_the_names_of_its_labels(adapter, predict, tmp_path, monkeypatch, chunk):
    from transformers import AutoTokenizer

    monkeypatch.setattr(stream, "CHUNK", chunk)
    rows = [LONG, *(text for text, _ in texts(17)), LONG]
    answers = predict(adapter, write(tmp_path / "rows.txt", "\n".join(rows)))
    expected = one_by_one(
        load_saved(adapter, CLASSIFIER), AutoTokenizer.from_pretrained(adapter), [[row] for row in rows]
    )
    assert list(answers[0]["probabilities"]) == ["bird", "fruit", "Werkzeug ü"]
    check(answers, expected)
    predict(adapter, tmp_path / "rows.txt", "--output", tmp_path / "out.jsonl")
    assert '"Werkzeug ü": ' in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["gpt2", "distilbert"])
def test_a_plain_checkpoint_is_padded_and_cut_as_it_needs(classifier, predict, tmp_path, kind):
    """GPT-2's tokenizer here has no padding token, and neither is told how many tokens its model reads."""
    from transformers import AutoTokenizer

    folder = classifier(kind)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", json.dumps({**settings, "model_max_length": 10**30}))
    rows = [text for text, _ in texts(9)]
    answers = predict(folder, write(tmp_path / "rows.txt", "\n".join([*rows, LONG])))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = one_by_one(load_saved(folder, CLASSIFIER), tokenizer, [[row] for row in rows])
    check(answers[:9], expected)
    assert answers[0]["probabilities"].keys() == {"LABEL_0", "LABEL_1"}


def test_a_run_reads_its_own_columns(classifier, predict, refused, tmp_path):
    """Both texts of a pair, as the run's record names them, though another column looks like the text."""
    from transformers import AutoTokenizer

    folder = classifier("bert")
    columns = {"text": "premise", "text_pair": "claim", "label": "label"}
    write(folder.parent / "run.json", json.dumps({"data": {"columns": columns}}))
    rows = [(one, other) for (one, _), (other, _) in zip(texts(5), texts(5, seed=4), strict=True)]
    named = [{"text": "x", "premise": one, "claim": other, "swap": other} for one, other in rows]
    file = write_jsonl(tmp_path / "rows.jsonl", named)
    model, tokenizer = load_saved(folder, CLASSIFIER), AutoTokenizer.from_pretrained(folder)
    check(predict(folder.parent, file), one_by_one(model, tokenizer, rows))
    swapped = predict(folder.parent, file, "--text", "claim", "--text_pair", "premise")
    check(swapped, one_by_one(model, tokenizer, [(other, one) for one, other in rows]))
    assert "no column 'claim'; found 'text'. Set --text_pair" in refused(folder.parent, write(tmp_path / "a.txt", "a"))


def test_numbers_in_json_are_read_as_training_reads_them(run, predict, tmp_path):
    written = predict(run, write_jsonl(tmp_path / "a.jsonl", [{"text": "7"}, {"text": "true"}]))
    assert predict(run, write_jsonl(tmp_path / "b.jsonl", [{"text": 7}, {"text": True}])) == written


def test_formats_are_those_that_are_read():
    assert list(cli.FORMATS) == [*stream.READERS, "conll"]
    assert sorted(cli.COLUMNS) == sorted(stream.ROLES)


def test_no_rows_no_answers(run, predict, tmp_path):
    for name in ("rows.txt", "rows.jsonl", "rows.csv"):
        assert predict(run, write(tmp_path / name, "")) == []


# streams


def test_rows_come_in_chunks_and_no_sooner_than_asked_for(tmp_path):
    file = write(tmp_path / "rows.csv", "text\n" + "".join(f'"line {i}\nof many"\n' for i in range(100_000)))
    chunks = stream.read_chunks(str(file), None, TEXT, {}, {})
    rows = next(chunks)
    position = [os.lseek(fd, 0, os.SEEK_CUR) for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd, file)]
    assert position == [stream.BLOCK]
    for chunk in chunks:
        assert len(chunk) <= stream.CHUNK
        rows += chunk
    assert rows == [(i + 1, {"text": f"line {i}\nof many"}) for i in range(100_000)]


def test_a_line_is_a_text_without_its_end(tmp_path):
    file = write(tmp_path / "rows.txt", "\ufeff one\r\ntwo \n three")
    rows = [row for chunk in stream.read_chunks(str(file), None, TEXT, {}, {}) for row in chunk]
    assert rows == [(1, {"text": " one"}), (2, {"text": "two "}), (3, {"text": " three"})]


def is_open(descriptor, file):
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:  # the one that listed the folder
        return False


def test_a_slow_writer_is_answered_line_by_line_and_an_interrupt_is_one_line(run):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    obey = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen([*GRAFT, "predict", run, "-"], **pipes, text=True, env=buffered, preexec_fn=obey)
    give_up = Timer(120, process.kill)
    give_up.start()
    for number in (1, 2, 3):
        process.stdin.write("the old saw\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["row"] == number
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    give_up.cancel()
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_closed_pipe_ends_an_endless_stream_quietly(run, monkeypatch, tmp_path):
    endless = subprocess.Popen(["yes", '{"text": "my old saw"}'], stdout=subprocess.PIPE)
    with (tmp_path / "answers.jsonl").open("w") as file:
        head = subprocess.Popen(["head", "-n", "1500"], stdin=subprocess.PIPE, stdout=file, text=True)
    monkeypatch.setattr("sys.stdin", endless.stdout)
    monkeypatch.setattr("sys.stdout", head.stdin)
    assert cli.main(["predict", str(run), "-", "--format", "jsonl"]) == 0
    head.stdin.close()  # as Python does at its end; raises where something is left to write, and nobody reads
    endless.stdout.close()
    assert (head.wait(timeout=60), endless.wait(timeout=60)) == (0, -signal.SIGPIPE)
    answers = [json.loads(line)["row"] for line in (tmp_path / "answers.jsonl").open()]
    assert answers == [*range(1, 1501)]


def test_answers_before_a_bad_chunk_are_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "CHUNK", 2)
    assert cli.main(["predict", str(run), str(write(tmp_path / "rows.txt", "a\nb\nc\n\n"))]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["row"] for line in captured.out.splitlines()] == [1, 2]
    assert (
        captured.err == f"error: {tmp_path}/rows.txt: column 'text', row 4: empty or missing; every row needs a text\n"
    )


# refusals


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,label\na,b\n,b\n", "a.csv: column 'text', row 2: empty or missing"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": null}\n', "row 2: empty or missing"),
        ("a.jsonl", '{"text": "a"}\n{"label": "a"}\n', "row 2: empty or missing"),
        ("a.jsonl", '{"text": NaN}\n', "row 1: empty or missing"),
        ("a.txt", "a\n \nb\n", "row 2: empty or missing"),
        ("a.jsonl", '{"text": ["a"]}\n', "row 1: holds a list, and a text is one string"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "row 2 is not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n["a"]\n', "row 2 is no JSON object"),
        ("a.jsonl", '{"text": "a \\ud800"}\n', "row 1: not UTF-8, or half of a character"),
        ("a.csv", b"text\nschoen\nsch\xf6n\n", "row 2: not UTF-8"),
        ("a.txt", b"sch\xf6n", "row 1: not UTF-8"),
        ("a.csv", "text,label\na,b\n\na\n", "row 2 has 1 fields, and the header 2"),
        ("a.csv", "text,label\na,b,c\n", "row 1 has 3 fields, and the header 2"),
        ("a.csv", 'text,label\na,b\n"a,b\na,b\n', "an open or stray quote in row 2"),
        ("a.csv", '"text,label\na,b\n', "an open or stray quote in the header"),
        ("a.csv", "text,text\na,b\n", "column 'text' stands twice"),
        ("a.csv", "title,label\na,b\n", "found 'title', 'label'. Set --text"),
        ("a.csv", "text,body\na,b\n", "which column is the text cannot be told; found 'text', 'body'. Set --text"),
        ("a.xlsx", "text\na\n", "does not end in .csv, .tsv, .jsonl, .txt, .parquet. Set --format"),
    ],
)
def test_rows_that_cannot_be_read(checkpoint, refused, tmp_path, monkeypatch, name, content, expected):
    monkeypatch.setattr(verb, "read_labels", lambda located: pytest.fail("loaded a model for a bad file"))
    assert expected in refused(checkpoint("bert", headless=False), write(tmp_path / name, content))


def test_models_that_cannot_be_used(checkpoint, adapter, refused, tmp_path):
    file = write(tmp_path / "a.txt", "a\n")
    assert "no such folder here, and not found on the Hub" in refused("no/such", file)
    assert "no such folder here, and not found on the Hub" in refused("./no/such/folder", file)
    assert "holds neither a run nor a model" in refused(tmp_path, file)
    assert "holds neither a run nor a model" in refused(file, file)
    write(tmp_path / "config.yaml", "")
    assert f"this run did not finish (no model/); go on with --run.out {tmp_path} --run.resume" in refused(
        tmp_path, file
    )
    write(tmp_path / "run.json", json.dumps({"recipe": "evaluate", "backbone": {"name": "me/model"}}))
    assert f"{tmp_path} is an evaluation of me/model, and holds no model; name that" in refused(tmp_path, file)
    assert "classifies neither texts nor pictures (BertModel)" in refused(checkpoint("bert"), file)
    other = shutil.copytree(adapter, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    write(other / "adapter_config.json", json.dumps({**settings, "task_type": "FEATURE_EXTRACTION"}))
    assert "is an adapter, but of no text classifier (task_type FEATURE_EXTRACTION)" in refused(other, file)
    bare = shutil.copytree(adapter, tmp_path / "bare", ignore=shutil.ignore_patterns("labels.json"))
    assert f"{bare} cannot be loaded on its base" in refused(bare, file)  # which has a head of two labels, not three
    broken = shutil.copytree(checkpoint("bert", headless=False), tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    write(broken / "model.safetensors", whole[: len(whole) // 2])
    assert f"{broken} cannot be loaded" in refused(broken, file)
    (broken / "model.safetensors").unlink()
    assert f"{broken} cannot be loaded" in refused(broken, file)
    shutil.copy(checkpoint("bert") / "model.safetensors", broken)
    assert "2 of its parameters are not in its weights, such as classifier.bias" in refused(broken, file)
    settings = json.loads((broken / "config.json").read_text())
    write(broken / "config.json", json.dumps({**settings, "hidden_size": 64}))
    shutil.copy(checkpoint("bert", headless=False) / "model.safetensors", broken)
    assert f"{broken} cannot be loaded" in refused(broken, file)


def test_words_that_make_no_sense(run, data, refused, tmp_path):
    file = data / "test.csv"
    assert "no column 'body'; found 'text', 'label'. Set --text" in refused(run, file, "--text", "body")
    assert "no column 'body'; found 'text', 'label'. Set --text_pair" in refused(run, file, "--text_pair", "body")
    assert "nothing.csv cannot be read: No such file" in refused(run, tmp_path / "nothing.csv")
    assert "cannot be read: Is a directory" in refused(run, data, "--format", "csv")
    assert "the name must end in .csv or .jsonl" in refused(run, file, "--output", "answers.parquet")
    assert "is the file to read" in refused(run, file, "--output", data / ".." / data.name / "test.csv")
    assert "cannot be written: No such file" in refused(run, file, "--output", tmp_path / "no" / "out.csv")
    (tmp_path / "full.csv").symlink_to("/dev/full")
    assert "cannot be written: No space left" in refused(run, file, "--output", tmp_path / "full.csv")
    assert "--format: invalid choice: 'xls'" in refused(run, file, "--format", "xls")
    assert "unrecognized arguments: --tex" in refused(run, file, "--tex", "text")
    assert f"--image text does nothing: {run} reads texts; leave it out" in refused(run, file, "--image", "text")


# the command


def test_a_command_is_needed(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: COMMAND (see graft --help)\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing"], "error: argument COMMAND: invalid choice: 'nothing' (choose from "),
        (["--", "predict"], "error: the following arguments are required: COMMAND"),
        (["predict"], "error: the following arguments are required: RUN_OR_MODEL, FILE (see graft predict --help)"),
        (["pull", "a", "--outer", "b"], "error: unrecognized arguments: --outer b (see graft pull --help)"),
    ],
)
def test_words_that_are_no_command(capsys, words, expected):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(expected)
    assert error.count("\n") == 1


def test_of_several_processes_one_speaks(monkeypatch, capsys):
    """Unless a mistake may show in another one alone."""
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["predict", "no/such", "a.txt"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(verb, "locate", lambda model: (_ for _ in ()).throw(UserError("here", everywhere=True)))
    assert cli.main(["predict", "no/such", "a.txt"]) == 2
    assert capsys.readouterr().err == "error: here\n"


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--help"], ["numpy", "yaml"]),
        (["predict", "--help"], ["numpy", "yaml"]),
        (["predict", "MODEL", "nothing.csv", "--format", "xls"], ["numpy"]),
        (["predict", "MODEL", "nothing.csv"], ["torch", "transformers", "timm", "datasets", "PIL"]),
    ],
)
def test_nothing_heavy_is_loaded_for_a_mistake_or_help(checkpoint, words, loaded):
    words = [str(checkpoint("bert", headless=False)) if word == "MODEL" else word for word in words]
    script = f"""
import sys
from graftkit.cli import main
try:
    main({words})
except SystemExit:
    pass
print([name for name in {loaded} if name in sys.modules])"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "predict"),
        (["predict", "--help"], "--text_pair COLUMN"),
        (["--version"], "graft 0."),
    ],
)
def test_help_comes_at_once(words, expected):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        answer = subprocess.run([*GRAFT, *words], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert expected in answer.stdout
    assert min(seconds) < 1

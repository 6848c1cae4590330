"""Does `graft predict` tag words, however they are written, with the run's own tags, or else one line why not?"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from contextlib import redirect_stdout
from threading import Timer

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from test_cli import GRAFT, is_open, write, write_jsonl
from test_token_classification import sentence, sentences
from test_token_classify import LABELS, train, write_rows

from graftkit import cli
from graftkit import predict as verb
from graftkit.data import stream
from graftkit.metrics.tagging import spans


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """40, 10 and 15 sentences, and one of test that is read in several windows."""
    folder = tmp_path_factory.mktemp("tagged")
    for split, count, seed in (("train", 40, 1), ("dev", 10, 2), ("test", 14, 3)):
        rows = sentences(count, seed)
        if split == "test":
            rows.insert(3, sentence("long", [word for row in sentences(20, 9) for word in row["words"]]))
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint, tagged):
    """Makes a run of a kind, once: its folder."""
    made, words = {}, {"bert": ("--train.lr", 0.01), "gpt2": ("--adapt.strategy", "lora", "--train.lr", 0.01)}

    def make(kind):
        if kind not in made:
            with redirect_stdout(io.StringIO()):
                made[kind], _ = train(tmp_path_factory.mktemp(kind) / "run", checkpoint(kind), tagged, *words[kind])
        return made[kind]

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


def sentences_of(tagged):
    return [json.loads(line)["words"] for line in (tagged / "test.jsonl").open()]


def open_at(file):
    return [descriptor for descriptor in map(int, os.listdir("/proc/self/fd")) if is_open(descriptor, file)]


def tags_of(run):
    return parquet.read_table(run / "predictions-test.parquet")["prediction"].to_pylist()


def answer_conll(capsys, *words):
    """What `graft predict` prints, sentence by sentence, its lines."""
    assert cli.main(["predict", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n\n")
    return [block.split("\n") for block in out[:-2].split("\n\n")]


# the answers


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_run_tags_as_its_table_says(runs, tagged, predict, kind):
    run = runs(kind)
    answers, expected = predict(run, tagged / "test.jsonl"), tags_of(run)
    assert [answer["tags"] for answer in answers] == expected
    assert len({tag for tags in expected for tag in tags}) > 2
    assert [answer["words"] for answer in answers] == sentences_of(tagged)
    for number, answer in enumerate(answers, 1):
        assert list(answer) == ["row", "words", "tags", "probabilities", "entities"]
        assert answer["row"] == number
        assert all(1 / len(LABELS) <= share <= 1 for share in answer["probabilities"])
        found = [(one["type"], one["first"], one["last"]) for one in answer["entities"]]
        assert found == [tuple(span) for span in spans(answer["tags"], "BIO")]
        for one in answer["entities"]:
            assert one["text"] == " ".join(answer["words"][one["first"] : one["last"] + 1])
    assert predict(run / "model", tagged / "test.jsonl") == answers  # which has no record of a run


@pytest.mark.parametrize("form", ["json lists", "python lists", "blanks", "parquet", "text", "txt"])
def test_words_may_be_written_in_many_ways(runs, tagged, tmp_path, capsys, form, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 4)
    words = sentences_of(tagged)
    written = {"json lists": json.dumps, "python lists": repr}.get(form, " ".join)
    file = tmp_path / {"parquet": "rows.parquet", "txt": "rows.txt"}.get(form, "rows.csv")
    if form == "parquet":
        parquet.write_table(pa.table({"tokens": words, "more": [1] * len(words)}), file)
    elif form == "txt":
        write(file, "\n".join(map(" ".join, words)))
    else:
        with file.open("w", newline="") as table:
            csv.writer(table).writerows([["text" if form == "text" else "words"], *([written(row)] for row in words)])
    assert cli.main(["predict", str(runs("bert")), str(file), *(["--format", "txt"] if form == "txt" else [])]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["tags"] for line in captured.out.splitlines()] == tags_of(runs("bert"))
    assert captured.err.count("texts are split at blanks") == (form in ("text", "txt"))


def test_words_are_preferred_to_a_text(runs, predict, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a robin", "tokens": ["the", "a", "saw"], "more": "old saw"}])
    assert [answer["words"] for answer in predict(runs("bert"), file)] == [["the", "a", "saw"]]
    assert [answer["words"] for answer in predict(runs("bert"), file, "--text", "more")] == [["old", "saw"]]
    assert [answer["words"] for answer in predict(runs("bert"), file, "--words", "more")] == [["old", "saw"]]


def test_csv_holds_the_same(runs, tagged, predict, tmp_path):
    expected = predict(runs("bert"), tagged / "test.jsonl")
    assert predict(runs("bert"), tagged / "test.jsonl", "--output", tmp_path / "out.csv") == []
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: json.loads(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == expected


# a word in each line


def test_conll_comes_back_with_the_tag_as_last_column(runs, tagged, tmp_path, capsys):
    words, tags = sentences_of(tagged), tags_of(runs("bert"))
    lines = [[f"{word} x" for word in row] for row in words]
    file = write(tmp_path / "rows.conll", "\n".join("\n".join(sentence) + "\n" for sentence in lines))
    expected = [[f"{word} x {tag}" for word, tag in zip(*pair, strict=True)] for pair in zip(words, tags, strict=True)]
    assert answer_conll(capsys, runs("bert"), file) == expected
    assert answer_conll(capsys, runs("bert"), file.rename(tmp_path / "rows.txt"), "--format", "conll") == expected


def test_the_column_and_the_output_may_be_chosen(runs, tagged, predict, tmp_path, capsys):
    words, tags = sentences_of(tagged)[0], tags_of(runs("bert"))[0]
    how = (runs("bert"), write(tmp_path / "rows.bio", "\n".join(f"x\t{word}" for word in words)), "--words", 2)
    (lines,) = answer_conll(capsys, *how)
    assert lines == [f"x\t{word}\t{tag}" for word, tag in zip(words, tags, strict=True)]
    for name in ("out.jsonl", "out.iob2"):
        assert predict(*how, "--output", tmp_path / name) == []
    assert json.loads((tmp_path / "out.jsonl").read_text())["tags"] == tags
    assert (tmp_path / "out.iob2").read_text() == "\n".join(lines) + "\n\n"
    predict(runs("bert"), tagged / "test.jsonl", "--output", tmp_path / "table.conll")
    assert (tmp_path / "table.conll").read_text().startswith(f"{words[0]}\t{tags[0]}\n{words[1]}\t{tags[1]}\n")


def test_lines_without_words_stay_as_they_are(runs, tmp_path, capsys):
    text = "-DOCSTART- -X-\n\n# id = 1\n1-2\tasaw\n1\ta\n2\tsaw\n\n\n# id = 2\n1\trobin\n# \t#\n"
    file = write(tmp_path / "rows.conllu", text.replace("\n", "\r\n"))
    assert cli.main(["predict", str(runs("bert")), str(file)]) == 0
    tagged = capsys.readouterr().out.split("\n")
    assert len(tagged) == len(text.split("\n")) + 1  # that which ends the last sentence
    for before, after in zip(text.split("\n"), tagged, strict=False):
        if (before[:1] in ("1", "2") and before[:3] != "1-2") or before == "# \t#":
            assert after.rpartition("\t")[0] == before
            assert after.rpartition("\t")[2] in LABELS
        else:
            assert after == before


def test_lines_are_read_no_sooner_than_asked_for(tmp_path):
    file = write(tmp_path / "rows.conll", "".join(f"word\t{i}\nend\t.\n\n" for i in range(50_000)))
    chunks = stream.read_conll(str(file), None, None)
    rows = next(chunks)
    assert [os.lseek(descriptor, 0, os.SEEK_CUR) for descriptor in open_at(file)] == [stream.BLOCK]
    for chunk in chunks:
        assert len(chunk) <= stream.CHUNK
        rows += chunk
    assert [number for number, _ in rows] == [*range(1, 50_001)]
    assert rows[7][1] == {"words": ["word", "end"], "lines": ["word\t7", "end\t."], "at": [0, 1]}


def test_a_slow_writer_of_lines_is_answered_sentence_by_sentence(runs):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*GRAFT, "predict", runs("bert"), "-", "--format", "conll"]
    process = subprocess.Popen(command, **pipes, text=True, env=environment)
    give_up = Timer(120, process.kill)
    give_up.start()
    for word in ("robin", "saw"):
        process.stdin.write(f"the\n{word}\n\n")
        process.stdin.flush()
        lines = [process.stdout.readline() for _ in range(3)]
        assert [line.split("\t")[0].strip() for line in lines] == ["the", word, ""]
    _, errors = process.communicate(timeout=60)
    give_up.cancel()
    assert (process.returncode, errors) == (0, "")


def test_answers_before_a_bad_sentence_are_written(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "CHUNK", 2)
    file = write_jsonl(tmp_path / "rows.jsonl", [{"words": ["a"]}, {"words": ["b"]}, {"words": ["c"]}, {"words": []}])
    assert cli.main(["predict", str(runs("bert")), str(file)]) == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["words"] for line in captured.out.splitlines()] == [["a"], ["b"]]
    assert captured.err == f"error: {file}: column 'words', row 4: an empty sentence; every row needs words\n"


# refusals


@pytest.mark.parametrize(
    ("name", "content", "words", "expected"),
    [
        ("a.jsonl", '{"words": ["a", null]}\n', (), "row 1: None is no word; words are strings that are not empty"),
        ("a.jsonl", '{"words": ["a", " "]}\n', (), "row 1: ' ' is no word"),
        ("a.jsonl", '{"words": ["a"]}\n{"words": 7}\n{"words": null}\n', (), "row 3: empty or missing"),
        ("a.jsonl", '{"words": {"a": 1}}\n', (), "row 1: holds a dict"),
        ("a.jsonl", '{"words": ["a \\ud800"]}\n', (), "row 1: not UTF-8, or half of a character"),
        ("a.jsonl", '{"words": "[a]"}\n', (), 'row 1: a list that is neither JSON nor Python. Write ["a", "b"]'),
        ("a.csv", "words,text\n,a\n", (), "column 'words', row 1: empty or missing"),
        ("a.csv", "title,more\na,b\n", (), "found 'title', 'more'. Set --words or --text"),
        ("a.csv", "words,text\na,b\n", ("--words", "words", "--text", "text"), "--words and --text: a row has one"),
        ("a.csv", "words\na\n", ("--text_pair", "words"), "reads words; leave it out"),
        ("a.txt", "a\n", (), "its lines may be words, or texts. Set --format conll, or --format txt"),
        ("a.conll", "a b\nc\n", ("--words", "2"), "line 2: no word in column 2 of 'c'. Set --words"),
        ("a.conll", "a b\n", ("--words", "word"), "--words word: columns of"),
        ("a.conll", "a b\n", ("--text", "b"), "--text b does nothing: each line of"),
        ("a.conll", b"sch\xf6n\n", (), "line 1: not UTF-8"),
        ("a.parquet", "no parquet", (), "a.parquet is no parquet file"),
        ("a.csv", "words\na\n", ("--output", "a.tsv"), "must end in .csv, .conll or .jsonl"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read(runs, refused, tmp_path, monkeypatch, name, content, words, expected):
    run = runs("bert")
    monkeypatch.setattr(verb, "read_labels", lambda located: pytest.fail("loaded a model for a bad file"))
    assert expected in refused(run, write(tmp_path / name, content), *words)


def test_parquet_comes_from_files(runs, refused, tmp_path):
    assert "standard input: parquet is read from files" in refused(runs("bert"), "-", "--format", "parquet")
    assert "nothing.parquet cannot be read" in refused(runs("bert"), tmp_path / "nothing.parquet")


def test_classifiers_have_no_use_for_lines_of_words(checkpoint, refused, tmp_path):
    folder = checkpoint("bert", headless=False)
    file = write(tmp_path / "a.conll", "a\n")
    assert "reads no words with a line each" in refused(folder, file, "--format", "conll")
    assert "--words a does nothing" in refused(folder, file, "--words", "a")
    assert "must end in .csv or .jsonl" in refused(folder, file, "--output", tmp_path / "out.conll")


def test_a_tagger_of_others_answers_unless_its_head_is_missing(checkpoint, predict, refused, tmp_path):
    from transformers import AutoConfig, AutoModelForTokenClassification

    folder = shutil.copytree(checkpoint("bert"), tmp_path / "tagger")
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    file = write_jsonl(tmp_path / "a.jsonl", [{"words": ["a", "saw"]}])
    (answer,) = predict(folder, file)
    assert list(answer) == ["row", "words", "tags", "probabilities"]  # plain tags mark no entities
    assert set(answer["tags"]) <= {"LABEL_0", "LABEL_1", "LABEL_2"}
    shutil.copy(checkpoint("bert") / "model.safetensors", folder)
    assert "parameters are not in its weights, such as classifier.bias" in refused(folder, file)


# scores on rows of one's own


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Runs `graft evaluate` in this process; the folder that it leaves."""

    def call(*words, out="evaluation"):
        assert cli.main(["evaluate", *map(str, words), "--run.out", str(tmp_path / out)]) == 0, capsys.readouterr().err
        return tmp_path / out

    return call


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_tagger_is_scored_as_it_scored_itself(runs, tagged, evaluate, kind):
    run = runs(kind)
    found = evaluate(run, "--data.path", tagged)
    for name in ("predictions-test.parquet", "rows-test.parquet", "measures-test.parquet"):
        assert (found / name).read_bytes() == (run / name).read_bytes()
    ours, theirs = (json.loads((place / "metrics.json").read_text()) for place in (found, run))
    assert ours["test"] == theirs["test"]
    ours, theirs = (json.loads((place / "run.json").read_text())["data"] for place in (found, run))
    assert ours["splits"]["test"] == theirs["splits"]["test"]
    assert (ours["scheme"], ours["columns"]) == (theirs["scheme"], theirs["columns"])
    report = (found / "report.md").read_text()
    assert "this model finds entities with an entity F1 of" in report
    assert "| Dev |" not in report
    assert "not trained on" not in report
    assert "1 longer one was read in windows that overlap" in report
    assert cli.main(["report", str(found)]) == 0
    assert (found / "report.md").read_text() == report


def test_lines_of_words_are_scored_alike(runs, tagged, evaluate, tmp_path):
    rows = [json.loads(line) for line in (tagged / "test.jsonl").open()]
    blocks = ["".join(f"{tag} {word}\n" for word, tag in zip(row["words"], row["tags"], strict=True)) for row in rows]
    file = write(tmp_path / "rows.txt", "\n".join(blocks))
    found = evaluate(runs("bert") / "model", "--data.path", file, "--data.words", 2, "--data.tags", 1)
    table = "predictions-test.parquet"
    assert (found / table).read_bytes() == (runs("bert") / table).read_bytes()


def test_tags_that_the_model_lacks_are_named_or_dropped(runs, evaluate, tmp_path, capsys):
    rows = [{"words": ["a", "saw"], "tags": ["O", tag]} for tag in ("B-tool", "B-fish", "B-tool")]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert cli.main(["evaluate", str(runs("bert")), "--data.path", str(file), "--run.out", str(tmp_path / "no")]) == 2
    assert "a tag that the model does not have ('B-fish') in row 2. Mend the data, or set" in capsys.readouterr().err
    found = evaluate(runs("bert"), "--data.path", file, "--data.bad_rows", "drop")
    assert parquet.read_table(found / "predictions-test.parquet")["id"].to_pylist() == ["test-1", "test-3"]


def test_tags_without_names_go_by_number(checkpoint, evaluate, tmp_path):
    from transformers import AutoConfig, AutoModelForTokenClassification

    folder = shutil.copytree(checkpoint("bert"), tmp_path / "tagger")
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": ["a", "saw"], "tags": [0, 2]}] * 2)
    found = evaluate(folder, "--data.path", rows)
    labels = parquet.read_table(found / "predictions-test.parquet")["label"].to_pylist()
    assert labels == [["LABEL_0", "LABEL_2"]] * 2
    assert "tags words with an accuracy of" in (found / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data.label", "a"), "--data.label a does nothing"),
        (("--data.text", "a"), "--data.text a does nothing"),
        (("--image.workers", 1), "--image.workers 1 does nothing"),
        (("--report.metrics", "f1"), "--report.metrics"),
        (("--report.slice", "a"), "--report.slice"),
        (("--data.tags", "b"), "no column 'b' in"),
    ],
)
def test_settings_that_make_no_sense_for_words(runs, tagged, tmp_path, capsys, words, expected):
    where = ("--data.path", tagged, "--run.out", tmp_path / "out")
    assert cli.main(["evaluate", *map(str, (runs("bert"), *where, *words))]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""Chats and prompts: which rows are good, and which tokens are learnt."""

from __future__ import annotations

import json

import pytest
from conftest import save_tokenizer, write_csv
from tokenizers import AddedToken

from graftkit.data.chats import ORDER, GenerateDataConfig, load_to_generate, wrong_with
from graftkit.data.turns import IGNORED, Reader, Tokens, windows
from graftkit.errors import UserError

TURN = "[{{ m['role'] }}] "
PLAIN = (
    "{% for m in messages %}" + TURN + "{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %} ;"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
MARKED = (
    "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eos>"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} ;{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
REWRITES = (
    "{% for m in messages %}" + TURN + "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %} ;"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN


def make_tokenizer(folder, template=None, length=40):
    from transformers import AutoTokenizer

    save_tokenizer(folder, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.chat_template, tokenizer.model_max_length = tokenizer.eos_token, template, length
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=[PLAIN, MARKED], ids=["by beginnings", "by marks"])
def chat_reader(request, tmp_path_factory):
    return Reader(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param))


def say(*turns):
    """Messages: a system message where the first turn begins with S:, then user and assistant."""
    messages, names = [], ["user", "assistant"] * len(turns)
    for turn in turns:
        role = "system" if turn.startswith("S:") else names.pop(0)
        messages.append({"role": role, "content": turn.removeprefix("S:")})
    return messages


def learnt(reader, row):
    ids, counted, _ = reader.read(row)
    return reader.tokenizer.decode([id for id, one in zip(ids, counted, strict=True) if one])


def test_only_answers_are_learnt(chat_reader):
    row = {"chat": json.dumps(say("S:old desk", "apple", "red saw", "pear", "crow"))}
    assert learnt(chat_reader, row) == "red saw <eos> crow <eos>"
    assert chat_reader.read(row).bytes == len("red sawcrow")
    begins, ids = chat_reader.start(row)
    assert begins == "old desk\n\napple"
    assert chat_reader.tokenizer.decode(ids).replace(" ##", "").endswith("] apple ; [ assistant ]")


CLOSED = (
    "{% for m in messages %}" + TURN + "{{ m['content'] }}[SEP] ;{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CLOSED_IN_MARKS = (
    "{% for m in messages %}" + TURN + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}[SEP] ;"
    "{% endgeneration %}{% else %}{{ m['content'] }}[SEP] ;{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parametrize("template", [CLOSED, CLOSED_IN_MARKS])
def test_an_answer_is_learnt_up_to_the_token_that_closes_it(tmp_path, template):
    tokenizer = make_tokenizer(tmp_path, template)
    tokenizer.add_tokens([AddedToken("[SEP]", special=True)])
    reader = Reader(tokenizer)
    assert reader.ends == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("[SEP]")]
    row = {"chat": json.dumps(say("S:old desk", "apple", "red saw", "pear", "crow"))}
    assert learnt(reader, row) == "red saw [SEP] crow [SEP]"


def test_a_text_ends_at_the_end_of_text_where_nothing_else_closes_it(chat_reader, tokenizer):
    for reader in (chat_reader, Reader(tokenizer)):
        assert reader.ends == [reader.close] == [reader.end]


def test_a_template_that_never_closes_an_answer_is_warned_of(tmp_path):
    path = write_chats(tmp_path / "rows.jsonl", [say(f"apple {i}", "saw") for i in range(30)])
    splits = load(path, make_tokenizer(tmp_path / "open", PLAIN.replace("<eos>", "")))
    assert [one for one in splits.warnings if "does not learn to stop" in one]
    assert not load(path, make_tokenizer(tmp_path / "closed", PLAIN)).warnings
    with pytest.raises(UserError, match=r"--data\.documents file: .*rows\.jsonl is none; leave it out") as refused:
        load(path, make_tokenizer(tmp_path / "closed", PLAIN), documents="file")
    assert "\n" not in str(refused.value)


def test_prompts_are_chats_where_there_is_a_template(chat_reader, tokenizer):
    row = {"prompt": "apple saw", "completion": "red crow"}
    assert learnt(chat_reader, row) == learnt(Reader(tokenizer), row) == "red crow <eos>"
    plain, chat = (tokenizer.decode(reader.read(row).ids) for reader in (Reader(tokenizer), chat_reader))
    assert plain == "apple saw red crow <eos>"
    assert chat.startswith("[")


def test_a_document_is_learnt_whole(tokenizer):
    ids, counted, size = Reader(tokenizer).read({"text": "apple saw é"})
    end = tokenizer.eos_token_id
    assert ids[0] == ids[-1] == end
    assert counted == [False] + [True] * (len(ids) - 1)
    assert size == 12
    tokenizer.bos_token = "[CLS]"
    assert Reader(tokenizer).read({"text": "apple"}).ids[0] == tokenizer.bos_token_id != end
    tokenizer.bos_token = None


@pytest.mark.parametrize("counted_from", [1, 4, 30])
@pytest.mark.parametrize("count", [2, 8, 9, 14, 15, 40])
def test_windows_hold_each_target_once(count, counted_from):
    tokens = Tokens(list(range(100, 100 + count)), [place >= counted_from for place in range(count)], 0)
    found = windows(tokens, 8)
    told = [target for window in found for target in window.targets if target != IGNORED]
    assert told == tokens.ids[counted_from:]
    for window in found:
        assert len(window.inputs) == len(window.targets) <= 8
        assert window.targets[-1] != IGNORED
        for read, target in zip(window.inputs, window.targets, strict=True):
            assert target in (IGNORED, read + 1)
    for window in found[1:]:
        context = next(place for place, target in enumerate(window.targets) if target != IGNORED)
        assert context >= 2  # a quarter is read again, before what is foreseen


# bad rows


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (say("a", "b"), None),
        (say("S:s", "a", "b", "c", "d"), None),
        (None, "no messages"),
        ([], "no messages"),
        ([{"content": "a"}], "a message without a role"),
        ([{"from": "human", "value": "a"}], "a message without a role"),
        (say("a", " "), "an empty message"),
        (say("a"), "no assistant turn"),
        ([{"role": "tool", "content": "a"}], "a role that is not system, user or assistant"),
        (say("a", "b", "c"), ORDER),
        (say("a", "b")[::-1], ORDER),
        ([*say("a", "b"), {"role": "system", "content": "s"}], ORDER),
        ([*say("a", "b"), {"role": "assistant", "content": "c"}], ORDER),
        (say("S:s", "a", "b")[1:2] * 2 + say("a", "b"), ORDER),
    ],
)
def test_what_is_wrong_with_messages(messages, words):
    found = wrong_with(messages)
    assert found is None if words is None else found.startswith(words)


def load(path, tokenizer, length=40, **settings):
    return load_to_generate(GenerateDataConfig(path=str(path), **settings), 0, Reader(tokenizer), length)


def write_chats(path, chats):
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


@pytest.mark.parametrize(
    ("template", "bad", "words"),
    [
        (PLAIN, say("a", "b", "c"), "roles out of order"),
        (PLAIN, say("a"), "no assistant turn in row 3."),
        (PLAIN, say("a " * 50, "b"), "a prompt longer than the model reads (40 tokens) in row 3."),
        (REWRITES, say("a", "b", "c", "d"), "rewrites earlier turns in row 3."),
        (REFUSES, say("S:s", "a", "b"), "a chat that the chat template refuses (no system here) in row 3."),
    ],
)
def test_bad_chats_are_named_or_dropped(tmp_path, template, bad, words):
    tokenizer = make_tokenizer(tmp_path, template)
    chats = [say(f"apple {i}", "saw") for i in range(30)]
    path = write_chats(tmp_path / "rows.jsonl", [*chats[:2], bad, *chats[2:]])
    with pytest.raises(UserError) as refused:
        load(path, tokenizer)
    assert words in str(refused.value)
    assert "row 3" in str(refused.value)
    assert "\n" not in str(refused.value)
    splits = load(path, tokenizer, bad_rows="drop")
    assert sum(splits.facts["dropped"]["train"].values()) == 1
    assert sum(len(getattr(splits, split)) for split in ("train", "dev", "test")) == 30


DEEP, HALF = "[" * 10_000, '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]'


@pytest.mark.parametrize("bad", ["[{", "[{[1]: 2}]", DEEP, HALF], ids=["cut off", "no key", "deep", "half"])
@pytest.mark.parametrize("write", [json.dumps, str])
def test_chats_that_are_written_as_text(tmp_path, write, bad):
    tokenizer = make_tokenizer(tmp_path, PLAIN)
    chats = [write(say(f"apple {i}", "saw")) for i in range(30)]
    path = write_chats(tmp_path / "rows.jsonl", [*chats[:2], bad, *chats[2:]])
    with pytest.raises(UserError, match="no messages in row 3"):
        load(path, tokenizer)
    splits = load(path, tokenizer, bad_rows="drop")
    assert splits.facts["dropped"]["train"] == {"no messages": 1}
    assert sum(len(getattr(splits, split)) for split in ("train", "dev", "test")) == 30


def test_messages_need_a_template_and_prompts_do_not(tmp_path, tokenizer):
    path = write_chats(tmp_path / "chats.jsonl", [say(f"apple {i}", "saw") for i in range(30)])
    with pytest.raises(UserError, match="no chat template") as refused:
        load(path, tokenizer)
    assert "\n" not in str(refused.value)
    rows = [(f"apple {i}", "saw") for i in range(30)]
    path = write_csv(tmp_path / "rows.csv", rows, ("prompt", "completion"))
    splits = load(path, tokenizer)
    assert splits.train.column_names == ["id", "prompt", "completion"]
    assert "the completions are learnt" in splits.notes[-1]


@pytest.mark.parametrize(
    ("header", "row", "settings", "words"),
    [
        (("prompt", "completion"), ("a " * 50, "saw"), {}, "a prompt longer than the model reads (40 tokens) in row 1"),
        (("prompt", "completion"), (" ", "saw"), {}, "an empty prompt in row 1"),
        (("prompt", "completion"), ("saw", ""), {}, "an empty completion in row 1"),
        (("prompt", "completion", "text"), ("a", "b", "c"), {}, "could be rows of several kinds. Set --data.prompt or"),
        (("prompt", "text"), ("a", "b"), {"prompt": "prompt"}, "no column is named like a completion"),
        (("q", "a"), ("a", "b"), {"prompt": "q", "text": "a"}, "--data.prompt and --data.text: rows are chats"),
    ],
)  # fmt: skip
def test_bad_prompts_and_columns(tmp_path, tokenizer, header, row, settings, words):
    path = write_csv(tmp_path / "rows.csv", [row, *[("x", "y", "z")[: len(row)]] * 30], header)
    with pytest.raises(UserError) as refused:
        load(path, tokenizer, **settings)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        Reader(tokenizer)

"""The task: packing, windows, masked positions, and memory."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import save_tokenizer
from tokenizers import AddedToken

from graftkit import cross_entropy
from graftkit.backbone import BackboneConfig
from graftkit.cross_entropy import summed_loss
from graftkit.data.turns import IGNORED, Reader
from graftkit.errors import UserError
from graftkit.generation import GenerateConfig, check_room
from graftkit.metrics import language, sums
from graftkit.packing import keeps_apart, pack, reads_ahead
from graftkit.tasks.causal_language_modelling import CausalLanguageModelling

SIZE = {"vocab_size": 180, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"max_position_embeddings": 48, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 4}


def make_model(kind):
    import transformers as t

    torch.manual_seed(0)
    config = {
        "gpt2": lambda: t.GPT2Config(vocab_size=180, n_layer=2, n_embd=32, n_head=2, n_positions=48),
        "llama": lambda: t.LlamaConfig(**SIZE),
        "qwen2": lambda: t.Qwen2Config(**SIZE),
        "mistral": lambda: t.MistralConfig(**SIZE, sliding_window=16),
        "gpt_neox": lambda: t.GPTNeoXConfig(
            **{name: value for name, value in SIZE.items() if name != "num_key_value_heads"}
        ),
        "bloom": lambda: t.BloomConfig(vocab_size=180, hidden_size=32, n_layer=2, n_head=2),
    }[kind]()
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return Reader(tokenizer)


TEXTS = [
    " ".join(["apple", "old", "saw", "red", "crow", "file", "again"][i % 7 :] * n)
    for i, n in enumerate((1, 3, 2, 28, 1, 5))
]
ROWS = [{"id": f"r{i}", "text": text} for i, text in enumerate(TEXTS)]


@pytest.fixture
def task(reader):
    return CausalLanguageModelling(reader, ["id", "text"], GenerateConfig())


def predicted(task, model, batches):
    with torch.no_grad():
        records = [
            r for rows in batches for r in task.predict(model, task.collate([task.encode(row, None) for row in rows]))
        ]
    return {record["id"]: record for record in records}


# packing


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "mistral", "gpt_neox"])
def test_a_packed_document_has_the_loss_that_it_has_alone(task, kind):
    model = make_model(kind)
    assert task.try_packing(model)
    batch = task.collate([task.encode(row, None) for row in ROWS])
    assert batch.inputs.keys() == {"input_ids", "position_ids"}
    assert len(batch.inputs["input_ids"]) < len(ROWS)
    together, alone = predicted(task, model, [ROWS]), predicted(task, model, [[row] for row in ROWS])
    for row in ROWS:
        one, other = together[row["id"]], alone[row["id"]]
        assert one["loss"] / one["tokens"] == pytest.approx(other["loss"] / other["tokens"], abs=1e-6)
        assert one | {"loss": 0} == other | {"loss": 0}


@pytest.mark.parametrize("kind", ["bloom"])
def test_a_network_that_mixes_packed_documents_gets_a_line_and_a_mask_for_each(task, kind):
    model = make_model(kind)
    assert not task.try_packing(model)
    batch = task.collate([task.encode(row, None) for row in ROWS])
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    together, alone = predicted(task, model, [ROWS]), predicted(task, model, [[row] for row in ROWS])
    for id, record in together.items():
        assert record["loss"] == pytest.approx(alone[id]["loss"], rel=1e-6)


def let_mix(model):
    """The same network with a mask, for which transformers does not look at positions."""
    forward = type(model).forward

    class Mixing(type(model)):
        def forward(self, input_ids=None, position_ids=None, **others):
            return forward(
                self, input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids, **others
            )

    model.__class__ = Mixing
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gpt_neox"])
def test_what_mixes_is_found_out_in_any_precision(kind, dtype):
    model = make_model(kind).to(dtype)
    assert keeps_apart(model, 8, 180)
    assert not reads_ahead(model, 8, 180)
    assert not keeps_apart(let_mix(model), 8, 180)


def test_weights_of_few_bits_round_though_their_logits_are_whole():
    model, draw = make_model("qwen2"), torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, made: made * (1 + torch.randn(1, generator=draw) / 2**9))
    assert not keeps_apart(model, 8, 180)
    model.is_quantized = True
    assert keeps_apart(model, 8, 180)
    assert not keeps_apart(let_mix(model), 8, 180)


def test_a_blank_network_cannot_be_judged():
    blank = make_model("llama")
    with torch.no_grad():
        for layer in blank.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    assert not keeps_apart(blank, 8, 180)  # nobody can tell


def test_lines_are_few_and_even():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = rng.integers(1, 41, rng.integers(1, 60)).tolist()
        lines = pack(sizes, 40)
        assert sorted(place for line in lines for place in line) == list(range(len(sizes)))
        held = [sum(sizes[place] for place in line) for line in lines]
        assert max(held) <= 40
        assert len(lines) <= math.ceil(sum(sizes) / 40) * 1.5 + 1
    assert pack([10] * 12, 40) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


# windows


def test_a_long_document_is_foreseen_once_and_trained_on_window_by_window(task):
    record = predicted(task, make_model("llama"), [[ROWS[3]]])["r3"]
    assert record["tokens"] == len(task.reader.read(ROWS[3]).ids) - 1 > 2 * task.length
    assert task.lengths(ROWS)[3] > record["tokens"]  # the overlaps are read twice
    parts = task.in_windows(ROWS)
    assert len(parts) > len(ROWS)
    assert task.lengths(parts).max() <= task.length
    assert task.lengths(parts).sum() == task.lengths(ROWS).sum()
    whole = task.collate([task.encode(row, None) for row in ROWS])
    pieces = task.collate([task.encode(parts[i], None) for i in range(len(parts))])
    assert task.count(whole) == task.count(pieces)
    model = make_model("llama")
    assert task.loss(model, whole).item() == pytest.approx(task.loss(model, pieces).item(), rel=1e-6)
    assert "r3, window 2" in pieces.ids


# loss


def test_masked_positions_have_no_gradient(reader):
    task = CausalLanguageModelling(reader, ["id", "prompt", "completion"], GenerateConfig())
    rows = [{"id": str(i), "prompt": "apple old saw", "completion": "red crow " * (i + 1)} for i in range(4)]
    batch, model, held = task.collate([task.encode(row, None) for row in rows]), make_model("llama"), []

    def keep(module, inputs, output):
        output.retain_grad()
        held.append(output)

    model.lm_head.register_forward_hook(keep)
    task.loss(model, batch).backward()
    counts = batch.targets["next"] != IGNORED
    assert counts.sum() == task.count(batch) == sum(2 * (i + 1) + 1 for i in range(4))
    moved = held[0].grad.abs().sum(dim=-1)
    assert (moved[~counts] == 0).all()
    assert (moved[counts] > 0).all()


def test_the_loss_in_parts_is_the_loss(monkeypatch):
    monkeypatch.setattr(cross_entropy, "POSITIONS", 7)
    logits = torch.randn(3, 11, 50, requires_grad=True)
    following = torch.randint(50, (3, 11))
    following[0, 2:9] = IGNORED
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
    (expected,) = torch.autograd.grad(whole, logits)
    found = summed_loss(logits, following)
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected)


def test_evaluation_never_holds_the_logits_of_all_rows(task, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS", 180 * 40)
    monkeypatch.setattr(cross_entropy, "POSITIONS", 16)
    model, made, entropy = make_model("llama"), [], torch.nn.functional.cross_entropy
    largest = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.numel()))
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda x, *args, **how: largest.append(len(x)) or entropy(x, *args, **how)
    )
    peaks = []
    for rows in (ROWS, ROWS * 10):
        made.clear()
        predicted(task, model, [[{**row, "id": f"{row['id']}-{i}"} for i, row in enumerate(rows)]])
        peaks.append(max(made))
    assert peaks[0] == peaks[1] <= 180 * 40
    assert max(largest) <= 16


def test_records_are_the_sums_of_plain_transformers(task):
    model = make_model("gpt2")
    records = predicted(task, model, [ROWS[:3]])
    for row in ROWS[:3]:
        ids = torch.tensor([task.reader.read(row).ids])
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids).loss.item()
        assert records[row["id"]]["loss"] == pytest.approx(mean * (ids.shape[1] - 1), rel=1e-5)
        assert records[row["id"]]["bytes"] == len(row["text"])


# scores and simple answers


def test_scores_follow_from_sums():
    records = [{"loss": 6.0, "tokens": 2, "right": 1, "bytes": 5}, {"loss": 4.0, "tokens": 3, "right": 1, "bytes": 15}]
    found = sums.score(language.CAUSAL, records)
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["log_loss"] == 2
    assert found["token_accuracy"] == pytest.approx(0.4)
    assert found["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert found["perplexity_per_byte"] == pytest.approx(math.exp(0.5))
    assert math.isfinite(
        sums.score(language.CAUSAL, [{"loss": 1e5, "tokens": 1, "right": 0, "bytes": 1}])["perplexity"]
    )
    assert sums.score(language.MASKED, [{"loss": 2.0, "tokens": 2, "right": 1}]).keys() == language.PER_TOKEN.keys()
    found = sums.intervals(language.CAUSAL, records * 20)
    assert found["perplexity"].low < found["perplexity"].value < found["perplexity"].high


def test_the_simple_answer_counts_tokens_of_train(task):
    train = [{"id": "t", "text": "apple apple saw"}]
    (loss,) = task.baselines(train, [], [{"id": "a", "text": "apple"}])["unigram"].given
    total = 4 + len(task.tokenizer)  # three words and an end, and one of each token
    assert loss == pytest.approx(-math.log(3 / total) - math.log(2 / total))


# generation


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_samples_are_the_same_for_the_same_seed(reader, temperature):
    task = CausalLanguageModelling(reader, ["text"], GenerateConfig(temperature=temperature, max_new_tokens=12))
    model, row = make_model("llama"), {"id": "a", "text": "apple saw red crow"}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    begins, first = task.write(model, row, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert begins == "apple saw"
    torch.manual_seed(6)
    assert task.write(model, row, 1) == (begins, first)
    assert (task.write(model, row, 2)[1] == first) == (temperature == 0)
    task.generate = GenerateConfig(temperature=temperature, max_new_tokens=1)
    assert " " not in task.write(model, row, 1)[1].strip()


def test_settings_of_generation_are_refused_or_saved(reader):
    with pytest.raises(UserError, match=r"--generate\.top_p 0"):
        GenerateConfig(top_p=0)
    settings = GenerateConfig(temperature=0, max_new_tokens=7).settings(reader.tokenizer, reader.ends)
    saved = settings.to_diff_dict()
    assert saved["max_new_tokens"] == 7
    assert saved["eos_token_id"] == saved["pad_token_id"] == reader.tokenizer.eos_token_id
    assert "temperature" not in saved


def test_a_text_is_over_at_any_end_that_checkpoint_or_template_names(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_tokens([AddedToken("[SEP]", special=True)])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}[SEP] ;{% endfor %}"
    end, close = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("[SEP]")
    task = CausalLanguageModelling(Reader(tokenizer), ["chat"], GenerateConfig(temperature=0, max_new_tokens=5))
    model, steps = make_model("llama"), []
    model.generation_config.eos_token_id = [7, end, 9999]  # the last is none of the tokenizer's
    for _ in range(2):
        task.save(tmp_path / "model", model)
        saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
        assert saved["eos_token_id"] == [end, close, 7]
    for likeliest, expected in ((close, 1), (7, 1), (9, 5)):
        steps.clear()

        def choose(layer, inputs, output, likeliest=likeliest):
            steps.append(output)
            return output + 100 * torch.nn.functional.one_hot(torch.tensor(likeliest), 180)

        hook = model.lm_head.register_forward_hook(choose)
        task.go_on(model, [20, 21], seed=1)
        assert len(steps) == expected
        hook.remove()


def test_more_new_tokens_than_positions_are_refused(tmp_path):
    model = make_model("gpt2")
    model.config.save_pretrained(tmp_path)
    backbone = BackboneConfig(name=str(tmp_path))
    check_room(GenerateConfig(max_new_tokens=47), backbone)
    with pytest.raises(UserError) as refused:
        check_room(GenerateConfig(max_new_tokens=48), backbone)
    assert "--generate.max_new_tokens 48: this checkpoint has positions for 48 tokens" in str(refused.value)
    assert "set 24, or 47 at most" in str(refused.value)


def test_what_is_gone_on_from_leaves_room(task):
    task.generate = GenerateConfig(max_new_tokens=47)
    model = make_model("gpt2")
    assert task.go_on(model, list(range(20, 60)), 1) == task.go_on(model, [59], 1)
    task.generate = GenerateConfig(max_new_tokens=44)  # more than is read at once (40), which takes nothing away
    assert task.go_on(model, list(range(20, 60)), 1) == task.go_on(model, [56, 57, 58, 59], 1)
    assert task.go_on(model, list(range(20, 60)), 1) != task.go_on(model, [59], 1)


def test_a_tokenizer_of_more_tokens_than_the_network_is_refused(task):
    import transformers as t

    small = t.AutoModelForCausalLM.from_config(t.LlamaConfig(**{**SIZE, "vocab_size": 60}))
    with pytest.raises(UserError, match="tokens, the network only 60"):
        task.try_packing(small)


def test_a_network_that_reads_from_both_sides_is_refused(task):
    import transformers as t

    config = t.RobertaConfig(**{k: v for k, v in SIZE.items() if k != "num_key_value_heads"}, pad_token_id=0)
    with pytest.raises(UserError, match="RobertaForCausalLM reads a text from both sides") as refused:
        task.try_packing(t.AutoModelForCausalLM.from_config(config))
    assert "\n" not in str(refused.value)


def test_rows_are_known_by_their_texts(reader):
    chat = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    reader.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    try:
        task = CausalLanguageModelling(Reader(reader.tokenizer), ["id", "chat"], GenerateConfig())
        kept = task.kept({"id": "x", "chat": chat})
        assert kept.content == {"chat": chat}
        assert kept.measures == {"tokens": 2.0, "counted_tokens": 1.0, "windows": 1.0}
        assert len(task.digest({"chat": chat})) == 64
    finally:
        reader.tokenizer.chat_template = None

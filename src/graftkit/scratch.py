"""What is there to start from, where no pretrained checkpoint is at hand?

Small networks that nobody has trained, built on the spot with a tokenizer learnt from the demo's own training texts:
they let a recipe run with no arguments and no network. Whoever has a checkpoint names it instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from graftkit.machine import cache_folder


def _gpt(folder: Path) -> None:
    """A Llama-style network of a million parameters, and an alphabet of 1,536 pieces of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1536, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(_demo_texts(), trainer)
    names = {"bos_token": end, "eos_token": end, "pad_token": end}
    PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=256, **names).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(pieces.get_vocab()), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
                bos_token_id=0, eos_token_id=0, pad_token_id=None,
            )
        )  # fmt: skip
    network.save_pretrained(folder)


def _demo_texts() -> list[str]:
    """The training texts of the demo."""
    import csv

    with (Path(__file__).parent / "data" / "support" / "train.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _t5(folder: Path) -> None:
    """A T5 of half a million parameters, and an alphabet of at most 800 pieces of bytes; digits stand by twos."""
    import csv

    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    with (Path(__file__).parent / "data" / "spoken" / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [text for row in csv.DictReader(file) for text in (row["source"], row["target"])]
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer.get_vocab()), d_model=96, d_kv=24, d_ff=256, num_layers=2, num_heads=4,
        dropout_rate=0.05, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = T5ForConditionalGeneration(config)
    network.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {"demo-gpt": _gpt, "demo-t5": _t5}
"""By name, what writes such a checkpoint, config, weights and tokenizer, into an empty folder: the same each time."""


def build(name: str) -> Path:
    """The folder of a checkpoint that nobody trained, made in the cache folder where it is not there yet."""
    import os
    import tempfile

    import tokenizers
    import transformers

    versions = json.dumps([transformers.__version__, tokenizers.__version__])
    folder = cache_folder() / "scratch" / f"{name}-{_short_hash(versions + Path(__file__).read_text(encoding='utf-8'))}"
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        MAKERS[name](aside)
        try:
            os.replace(aside, folder)
        except OSError:  # another process was first
            shutil.rmtree(aside)
    return folder


def _short_hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]

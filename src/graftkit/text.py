"""How do words become numbers?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftkit.backbone import ON_THIS_MACHINE, BackboneConfig, explain, resolve
from graftkit.errors import UserError
from graftkit.task import Row

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from graftkit.data import Splits
    from graftkit.run import Run

LONGEST = 512  # tokens, where the checkpoint allows more and the user says nothing
CHUNK = 1024  # rows tokenised at a time when lengths are counted


def load_tokenizer(
    config: BackboneConfig, *, fast: bool = True, pairs: bool = False, places: int = 0
) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, padding on the right, with a padding token and `model_max_length` set.

    UserError where it is not `fast`, unless nothing needs that (offsets of words, windows), and where it needs a
    package that is not installed.

    A GPT-style tokenizer without a padding token gets its end-of-text token for it, since every classifier finds the
    last real token by the padding id; one with neither gets a new token, for which the model needs a new row.
    With `pairs`, rows are two texts: see `_part_pairs`. So many `places` of the model are not for the text.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = resolve(config.name, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **ON_THIS_MACHINE)
        limit = position_limit(AutoConfig.from_pretrained(folder, **ON_THIS_MACHINE)) - places
    except (OSError, ValueError, ImportError) as error:
        why = explain(error, folder)
        raise UserError(f"--backbone.name {config.name}: no tokenizer could be loaded ({why})") from error
    if fast and not tokenizer.is_fast:
        raise UserError(f"--backbone.name {config.name}: its tokenizer has no fast version (tokenizer.json)")
    limit = min(limit, tokenizer.model_max_length)
    if config.max_length is not None and config.max_length > limit:
        raise UserError(f"--backbone.max_length {config.max_length}: this checkpoint reads at most {limit} tokens")
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if limit <= special:
        raise UserError(f"--adapt.prompt_tokens {places}: this checkpoint has {limit + places} places, none is left")
    if config.max_length is not None and config.max_length <= special:
        raise UserError(
            f"--backbone.max_length {config.max_length}: {special} are special tokens, which leaves none for text"
        )
    tokenizer.model_max_length = config.max_length or min(limit, LONGEST)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token or "<pad>"})
    if pairs:
        _part_pairs(tokenizer)
    return tokenizer


def check_can_hide(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a tokenizer without a mask token, or of which nobody knows where words begin."""
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"--backbone.name {tokenizer.name_or_path}: its tokenizer has no mask token, so it fills no gaps, as with "
            "all GPT-style checkpoints, which recipes/generate.py trains on texts; name a BERT-style one here"
        )
    if len(set(tokenizer("two words", add_special_tokens=False).word_ids())) < 2:
        raise UserError(
            f"--backbone.name {tokenizer.name_or_path}: its tokenizer does not tell where words begin, so none can be "
            "hidden whole; take another checkpoint"
        )


def _part_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    """Put a special token between the texts of a pair where the tokenizer puts none.

    GPT-style tokenizers read "a" and "b" as "ab", and no model could know where the one ends. Theirs is the token that
    ends a text, for want of a better one. tokenizer.json has it, so that plain transformers reads pairs the same way.
    """
    from tokenizers import processors

    owners = tokenizer("a", "b").sequence_ids()
    if None in owners[owners.index(0) : owners.index(1)]:
        return
    mark = tokenizer.sep_token or tokenizer.eos_token or tokenizer.pad_token
    special = [(mark, tokenizer.convert_tokens_to_ids(mark))]
    parted = processors.TemplateProcessing(single="$A:0", pair=f"$A:0 {mark}:0 $B:0", special_tokens=special)
    own = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = parted if own is None else processors.Sequence([own, parted])


def position_limit(config: Any) -> int:
    """How many tokens the checkpoint has positions for."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if limit is None or limit < 0:  # as XLNet says it
        return 10**9  # relative positions: no limit of its own
    if text.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer"):
        return limit - text.pad_token_id - 1  # their positions start after the padding id
    return limit


def encode(tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None) -> dict[str, list[int]]:
    """The model's inputs for one text, or a pair of texts, cut to `tokenizer.model_max_length` tokens."""
    return dict(tokenizer(text, pair, truncation=True))


def stand_in(tokenizer: PreTrainedTokenizerBase, tokens: int) -> dict[str, list[int]]:
    """Inputs of so many tokens, none of which is padding, for a model that will not look at them."""
    inputs = {"input_ids": int(tokenizer.pad_token_id == 0), "attention_mask": 1, "token_type_ids": 0}
    return {name: [value] * tokens for name, value in inputs.items() if name in tokenizer.model_input_names}


def encoding_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the numbers of a text follow from, besides the text: plain JSON."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    for how in ("truncation", "padding"):  # as it was called last
        whole.pop(how)
    rules = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    cut = {"length": tokenizer.model_max_length, "side": tokenizer.truncation_side}
    return {"rules": rules, **cut, "inputs": tokenizer.model_input_names}


def text_hash(*texts: str | None) -> str:
    """SHA-256 of a text in UTF-8; those of a pair are joined by a zero byte."""
    return hashlib.sha256("\0".join(text for text in texts if text is not None).encode()).hexdigest()


def join_rows(rows: Sequence[Row], count: int) -> dict[str, Any]:
    """One row of the texts of the first `count` rows, over and over where there are fewer."""
    taken = [rows[place % len(rows)] for place in range(count)]
    columns = [name for name in ("text", "text_pair") if taken[0].get(name) is not None]
    return {"id": "overlong", "joined": count} | {name: " ".join(row[name] for row in taken) for name in columns}


def join_to_cut(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> dict[str, Any]:
    """One row of the texts of the first rows, joined: twice as many tokens as the model reads."""
    import numpy as np

    tokens = np.maximum(1, token_lengths(tokenizer, rows) - tokenizer.num_special_tokens_to_add())
    times, rest = divmod(2 * tokenizer.model_max_length, int(tokens.sum()))
    return join_rows(rows, times * len(rows) + int(np.searchsorted(np.cumsum(tokens), rest)) + 1)


def token_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> np.ndarray:
    """Tokens of each row before it is cut, (rows,) int32. Tokenises in chunks, and keeps only the lengths."""
    import numpy as np

    lengths = np.empty(len(rows), dtype=np.int32)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        encoded = tokenizer(
            list(chunk["text"]),
            list(chunk["text_pair"]) if "text_pair" in chunk else None,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        lengths[start : start + len(chunk["text"])] = [len(ids) for ids in encoded["input_ids"]]
    return lengths


def text_measures(tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None) -> dict[str, float]:
    """Tokens of a text, or pair of texts, before it is cut and without special ones; and how many it does not know."""
    ids = tokenizer(text, pair, add_special_tokens=False, verbose=False)["input_ids"]
    return {"tokens": float(len(ids)), "unknown_tokens": float(ids.count(tokenizer.unk_token_id))}


def pad(tokenizer: PreTrainedTokenizerBase, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The examples' inputs, padded on the right to the longest: each (rows, tokens) int64."""
    import numpy as np
    import torch

    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    width = max(len(example["input_ids"]) for example in examples)
    padded = {}
    for name in tokenizer.model_input_names:
        if name in examples[0]:
            values = np.full((len(examples), width), fill.get(name, 0), dtype=np.int64)
            for i, example in enumerate(examples):
                values[i, : len(example[name])] = example[name]
            padded[name] = torch.from_numpy(values)
    return padded


def measure(run: Run, task: Any, splits: Splits) -> dict[str, np.ndarray]:
    """Tokens that are read of each row of each split; says how long the rows are, and how many are cut.

    A task that does not cut (`cuts`) reads longer rows in windows, and counts the tokens of all of them.
    """
    import numpy as np

    lengths = {name: task.lengths(getattr(splits, name)) for name in ("train", "dev", "test")}
    facts = describe_lengths(lengths["train"], task.tokenizer.model_max_length, cuts=task.cuts)
    special = task.tokenizer.num_special_tokens_to_add(pair="text_pair" in splits.train.column_names)
    run.record["lengths"] = facts | {"special_tokens": special}
    half, most, nearly_all, longest = facts["percentiles"].values()
    cut = f"{facts['truncated_rows']} rows ({facts['truncated_share']:.1%}) are cut to {facts['max_length']}"
    if not task.cuts:
        cut = f"{facts['windowed_rows']} rows are read in windows of {facts['max_length']}"
    run.say(f"tokens a row: half have at most {half}, 90% {most}, 99% {nearly_all}, the longest {longest}; {cut}")
    return {name: np.minimum(n, facts["max_length"]) if task.cuts else n for name, n in lengths.items()}


def describe_lengths(lengths: np.ndarray, max_length: int, *, cuts: bool = True) -> dict[str, Any]:
    """Length percentiles in tokens, and how many rows are longer than the model reads: cut, or read in windows."""
    import numpy as np

    longer = int((lengths > max_length).sum())
    percentiles = {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in (50, 90, 99, 100)}
    cut, windowed = (longer, {}) if cuts else (0, {"windowed_rows": longer})
    share = cut / len(lengths)
    facts = {"max_length": max_length, "truncated_rows": cut, "truncated_share": share, **windowed}
    return facts | {"percentiles": percentiles}

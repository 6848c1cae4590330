"""Which tokens does a text have, and which of them are to be foreseen?

Of a document all: it begins with the tokenizer's beginning-of-text token (or its end-of-text token, where it has none),
from which the first token is foreseen, and ends with its end-of-text token, which is foreseen too. Of a chat, and of a
prompt with its completion, the answers alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from graftkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # in place of a token that is not to be foreseen, as torch's cross-entropy has it
OVERLAP = 4  # a window shares one of so many parts with the one before it
FIRST_WORDS = 6  # of a document, that a sample goes on from
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # with which a template marks what the assistant says
PROBE = "graftkit"  # an answer that no template holds of itself


class Tokens(NamedTuple):
    """A row as tokens."""

    ids: list[int]
    counted: list[bool]  # which are to be foreseen; never the first
    bytes: int  # of the text that they write, in UTF-8


class Window(NamedTuple):
    """What a model reads at once."""

    inputs: Sequence[int]
    targets: Sequence[int]  # what follows each input, or IGNORED


class Reader:
    """Rows as tokens: those with `text`, with `chat` (a JSON list of messages), or with `prompt` and `completion`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if tokenizer.eos_token_id is None:
            raise UserError("--backbone.name: its tokenizer has no end-of-text token, so no text could ever end")
        self.tokenizer = tokenizer
        self.end = tokenizer.eos_token_id
        self.begin = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.template = tokenizer.chat_template is not None

    @cached_property
    def close(self) -> int | None:
        """The special token that closes an assistant's turn; None where the chat template writes none after it.

        The end-of-text token without a template, and with one that refuses a question with its answer.
        """
        if not self.template:
            return self.end
        turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": PROBE}]
        try:
            _, found, rest = self._apply(turns, text=True).rpartition(PROBE)
        except ValueError:
            return self.end
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special} | {self.end}
        return next((id for id in self._ids(rest) if id in special), None) if found else self.end

    @property
    def ends(self) -> list[int]:
        """The tokens at which what a model writes is over."""
        return [self.end] if self.close in (None, self.end) else [self.end, self.close]

    def read(self, row: Mapping[str, Any]) -> Tokens:
        """All tokens of a row. ValueError, with the reason, for a chat in which the answers cannot be found."""
        if row.get("text") is not None:
            ids = [self.begin, *self._ids(row["text"]), self.end]
            return Tokens(ids, [False] + [True] * (len(ids) - 1), _bytes(row["text"]))
        messages = self._messages(row)
        if messages is not None:
            ids, counted = self._read_chat(messages)
            return Tokens(ids, counted, sum(_bytes(one["content"]) for one in messages if one["role"] == "assistant"))
        prompt, answer = self._prompt(row["prompt"]), [*self._ids(row["completion"]), self.end]
        return Tokens(prompt + answer, [False] * len(prompt) + [True] * len(answer), _bytes(row["completion"]))

    def start(self, row: Mapping[str, Any]) -> tuple[str, list[int]]:
        """What a model is asked to go on from, as people see it and as tokens.

        The first words of a document, half of it at most; a prompt; a chat up to its first answer.
        """
        if row.get("text") is not None:
            words = list(re.finditer(r"\S+", row["text"]))
            last = words[max(0, min(FIRST_WORDS, len(words) // 2) - 1)]
            begun = row["text"][: min(last.end(), -(-len(row["text"]) // 2))]  # not all scripts have blanks
            return begun, [self.begin, *self._ids(begun)]
        messages = self._messages(row)
        if messages is None:
            return row["prompt"], self._prompt(row["prompt"])
        first = next(place for place, one in enumerate(messages) if one["role"] == "assistant")
        asked = messages[:first]
        return "\n\n".join(one["content"] for one in asked), self._template(asked, add_generation_prompt=True)

    def ask(self, row: Mapping[str, Any]) -> list[int]:
        """What a model is to go on from, as tokens: all of a `text`, a `prompt`, or `messages` that want an answer.

        ValueError, with the reason, where the tokenizer does not know how such messages are written.
        """
        if row.get("text") is not None:
            return [self.begin, *self._ids(row["text"])]
        if row.get("prompt") is not None and not self.template:
            return self._prompt(row["prompt"])
        if not self.template:
            raise ValueError("its tokenizer has no chat template, which says how messages are written. Set --prompt")
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        return self._template(messages, add_generation_prompt=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _prompt(self, text: str) -> list[int]:
        """A prompt as the tokenizer begins a text by itself, so that whoever asks the model asks as it learnt."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return ids[:-1] if ids[-1:] == [self.end] else ids

    def _messages(self, row: Mapping[str, Any]) -> list[dict[str, str]] | None:
        """The messages of a chat; of a prompt with its completion, where the tokenizer knows how chats are written."""
        if row.get("chat") is not None:
            return json.loads(row["chat"])
        if not self.template:
            return None
        pair = (("user", row["prompt"]), ("assistant", row["completion"]))
        return [{"role": role, "content": content} for role, content in pair]

    def _read_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """A chat as the template writes it, and which tokens are answers.

        The template says so where it marks them. Else they are what comes with each turn of the assistant: the chat up
        to the turn, and with it, must be the beginning of the whole. What follows the token that closes a turn is not
        learnt, since whoever asks the model stops there.
        """
        if GENERATION.search(self.tokenizer.get_chat_template()):
            written = self._apply(messages, return_dict=True, return_assistant_tokens_mask=True)
            counted = [bool(one) for one in written["assistant_masks"]]
            if not any(counted):
                raise ValueError("an answer that the chat template does not mark")
            ids, marks, counted = list(written["input_ids"]), [False, *counted[1:]], []
            for marked, turn in groupby(range(len(ids)), key=lambda place: marks[place]):
                places = list(turn)
                learnt = self._learnt(ids[places[0] : places[-1] + 1]) if marked else 0
                counted += [place < learnt for place in range(len(places))]
            return ids, counted
        whole = self._template(messages)
        counted = [False] * len(whole)
        for place in (place for place, one in enumerate(messages) if one["role"] == "assistant"):
            before = self._template(messages[:place], add_generation_prompt=True)
            after = self._template(messages[: place + 1])
            if whole[: len(before)] != before or whole[: len(after)] != after or len(before) >= len(after):
                raise ValueError("an answer that cannot be found, since the chat template rewrites earlier turns")
            learnt = self._learnt(after[len(before) :])
            counted[len(before) : len(before) + learnt] = [True] * learnt
        return whole, counted

    def _learnt(self, turn: Sequence[int]) -> int:
        """How many tokens of an assistant's turn are learnt: up to the one that closes it."""
        return len(turn) - turn[::-1].index(self.close) if self.close in turn else len(turn)

    def _template(self, messages: Sequence[Mapping[str, str]], **how: Any) -> list[int]:
        return list(self._apply(messages, return_dict=True, **how)["input_ids"])

    def _apply(self, messages: Sequence[Mapping[str, str]], *, text: bool = False, **how: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=not text, **how)
        except TemplateError as error:
            raise ValueError(f"a chat that the chat template refuses ({' '.join(str(error).split())})") from error


def windows(tokens: Tokens, length: int) -> list[Window]:
    """What a model that reads `length` tokens at once reads of a row: every counted token is a target exactly once.

    A window repeats the last quarter of the one before it, as context. One without targets is left out, and so is what
    follows the last target of one.
    """
    inputs, following = tokens.ids[:-1], tokens.ids[1:]
    targets = [id if counts else IGNORED for id, counts in zip(following, tokens.counted[1:], strict=True)]
    found, told = [], 0
    for start in range(0, len(inputs), length - length // OVERLAP):
        stop = min(start + length, len(inputs))
        here = [IGNORED] * (told - start) + targets[told:stop]
        last = max((place for place, target in enumerate(here) if target != IGNORED), default=None)
        if last is not None:
            found.append(Window(inputs[start : start + last + 1], here[: last + 1]))
        told = stop
        if stop == len(inputs):
            break
    return found


def _bytes(text: str) -> int:
    return len(text.encode())

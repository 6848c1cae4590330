"""What is in this file of SQuAD?

Articles hold paragraphs, paragraphs hold questions: one row is made of each question, in their order, so that row 7 is
the seventh question of the file. Version 1 and version 2, whose questions may have no answer, are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from graftkit.data.files import Table, read_file
from graftkit.errors import UserError

COLUMNS = ("id", "title", "context", "question", "answers", "is_impossible")


def read_questions(path: Path, where: str) -> Table:
    """All questions of a file, which messages call `where`: nested as SQuAD has them, or a table with a row for each.

    Columns of a nested file are `COLUMNS`; answers are lists of objects with `text` and `answer_start`. UserError where
    the file as a whole cannot be read.
    """
    articles = _articles(path) if path.suffix.lower() == ".json" else None
    if articles is None:
        return read_file(path, where)
    return _table(where, list(_questions(articles, where)))


def _articles(path: Path) -> list[Any] | None:
    """The articles of a nested file; None where it is none, or not one that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):  # `read_file` says what is wrong
        return None
    articles = values.get("data") if isinstance(values, dict) else None
    if not isinstance(articles, list) or not any(isinstance(one, dict) and "paragraphs" in one for one in articles):
        return None
    return articles


def _questions(articles: list[Any], where: str) -> Iterator[dict[str, Any]]:
    """Each question with the context that it asks of."""
    for number, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise UserError(f"{where}: article {number} has no list of paragraphs, as the others have")
        for place, paragraph in enumerate(paragraphs, 1):
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or not all(isinstance(one, dict) for one in questions):
                raise UserError(f"{where}: paragraph {place} of article {number} has no list of questions (qas)")
            for one in questions:
                shared = {"title": article.get("title"), "context": paragraph.get("context")}
                yield {name: (shared | one).get(name) for name in COLUMNS}


def _table(where: str, questions: list[dict[str, Any]]) -> Table:
    import pyarrow as pa
    from datasets import Dataset

    if not questions:
        raise UserError(f"{where} is empty: it has no questions")
    broken = [number for number, one in enumerate(questions, 1) if not _is_unicode(one)]
    kept = [one for number, one in enumerate(questions, 1) if number not in set(broken)]
    kinds = {"is_impossible": pa.bool_()}
    columns = {}
    for name in COLUMNS:
        values = [one[name] for one in kept]
        if name == "answers":  # as JSON: whatever stands there, each row is then judged by itself
            columns[name] = pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
        elif name == "is_impossible":
            columns[name] = pa.array([v if isinstance(v, bool) else None for v in values], kinds[name])
        else:
            columns[name] = pa.array([v if isinstance(v, str) else None for v in values], pa.string())
    numbers = np.setdiff1d(np.arange(1, len(questions) + 1), broken)
    return Table(where, Dataset(pa.table(columns)), numbers, {SURROGATE: broken} if broken else {})


SURROGATE = "half of a character (a lone surrogate)"


def _is_unicode(question: dict[str, Any]) -> bool:
    try:
        json.dumps(question, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True

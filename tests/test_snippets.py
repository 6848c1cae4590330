"""Are the lines that load a folder Python, and do they load what they say? (The tests of each task run its own.)"""

from __future__ import annotations

import ast

import pytest

from graftkit.snippets import classifying, loading

CLASSES = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "CausalLM", "Seq2SeqLM"]


def names(lines: str) -> tuple[set[str], set[str]]:
    """What the lines import and assign, and what they read."""
    nodes = list(ast.walk(ast.parse(lines)))
    imported = {name.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names}
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return imported | stored, read


@pytest.mark.parametrize("hub_id", [None, "me/mine"])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("head", CLASSES)
def test_lines_import_what_they_read(tmp_path, head, adapter, hub_id):
    folder = tmp_path / "it's here"
    folder.mkdir()
    if adapter:
        (folder / "adapter_config.json").write_text("{}")
    lines = loading(f"AutoModelFor{head}", folder, hub_id, also=["GenerationConfig"])
    there, read = names(lines)
    assert {"model", "tokenizer", "GenerationConfig"} <= there
    assert read <= there | {"dict", "enumerate", "len", "open"}
    assert (f"AutoPeftModelFor{head}" in there) == adapter != (f"AutoModelFor{head}" in there)
    assert repr(hub_id or str(folder)) in lines
    has_labels = adapter and head in CLASSES[:2]
    assert ("snapshot_download" in there) == (has_labels and hub_id is not None)
    assert ("labels.json" in lines) == has_labels


@pytest.mark.parametrize("adapter", [False, True])
def test_a_classifier_is_asked_one_text_or_pair(tmp_path, adapter):
    if adapter:
        (tmp_path / "adapter_config.json").write_text("{}")
    ast.parse(classifying(tmp_path))
    for pairs in (False, True):
        lines = classifying(tmp_path, pairs=pairs)
        assert (lines.count("a text"), lines.count("its pair")) == (1, int(pairs))

"""How does a run become a repository?"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from graftkit.errors import UserError
from graftkit.export import ADAPTER, HUB_ID, merge_saved
from graftkit.fingerprint import file_hashes
from graftkit.hub import cargo, client, gate
from graftkit.hub.base import find_base
from graftkit.hub.card import Base, read_notes, write_card
from graftkit.hub.config import HubConfig
from graftkit.report.markdown import number, title
from graftkit.run import Run
from graftkit.snippets import PLAIN

DEMOS = {
    "text-classification": "all-MiniLM-L6-v2",
    "image-classification": "a small network that knows the digits 0 to 4",
}
"""What `--backbone.name demo` is."""


def check_ready(config: HubConfig) -> None:
    """Raise UserError where a push could not work, before anything is trained; does nothing where none is asked for."""
    if config.push_to is None:
        return
    _read_notes(config)
    client.check_ready(config, _say)
    _check_ours(client.look(config, _say), config)


def share(run: Run, config: HubConfig) -> None:
    """Push a run that has just finished, where that was asked for; the other processes wait for the main one."""
    if config.push_to is not None:
        run.once(lambda: push(run.folder, config))


def push(folder: Path, config: HubConfig, data_path: str | None = None) -> client.Sent:
    """Check a run's model in a fresh process, and push it with its card and report in one commit.

    Raises UserError, with the command that tries again: nothing was sent then, or all of it.
    """
    again = _command(folder, config, data_path)
    try:
        run = gate.read_record(folder)
    except UserError as error:
        raise UserError(f"not pushed: {error}") from error  # to try again would not help
    try:
        with tempfile.TemporaryDirectory(prefix=".push-", dir=folder) as place:  # there, weights can be linked
            return _push(folder, Path(place), run, config, data_path)
    except client.Arrived as error:
        raise UserError(f"pushed, but {error}. To push again, and compare: {again}") from error
    except UserError as error:
        raise UserError(f"not pushed: {error}. The run is whole in {folder}; to try again: {again}") from error
    except OSError as error:
        raise UserError(
            f"not pushed: {error.strerror or error}. The run is whole in {folder}; to try again: {again}"
        ) from error
    except KeyboardInterrupt:
        _say(f"stopped while pushing; to push again: {again}")
        raise


def _push(folder: Path, place: Path, run: dict[str, Any], config: HubConfig, data_path: str | None) -> client.Sent:
    notes = _read_notes(config)
    client.check_ready(config, _say)
    remote = client.look(config, _say)
    _check_ours(remote, config)
    gate.check_files(folder, run)
    base, commit = find_base(folder, run, config, _say)
    _stage_model(folder, place, run, config, base, commit)
    _say("checking the model in a process without graftkit ...")
    found = gate.verify(folder, place, data_path)
    roots = run.get("root_folders", [])
    run = cargo.pack_run(folder, place, _published(run, config, base, commit), with_rows=config.with_rows)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    card, ours = (
        write_card(config.push_to, run, metrics, found, notes, previous, base) for previous in (remote.card, None)
    )
    found = {"passed": True, **found, "files": file_hashes(place)}
    (place / cargo.VERIFICATION).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (place / cargo.CARD).write_bytes(card.encode())  # with the ends of lines that its owner chose
    cargo.inspect(place, run["labels"], roots, ours, with_rows=config.with_rows)
    sent = client.send(place, config, remote, _commit_title(metrics), _say)
    what = "nothing changed since" if sent.unchanged else "pushed"
    _say(f"{what} {sent.url} (commit {sent.commit[:8]}); downloaded again and compared: the same bytes")
    return sent


def _stage_model(
    folder: Path, place: Path, run: dict[str, Any], config: HubConfig, base: Base, commit: str | None
) -> None:
    """The model as it is pushed: a copy, an adapter that names its base by its id, or an adapter merged into it."""
    adapter = (folder / "model" / ADAPTER).exists()
    if config.merge and not adapter:
        raise UserError("--hub.merge: the model of this run is no adapter; leave it out")
    if config.merge:
        merge_saved(folder / "model", place)
        run["hub_snippet"] = PLAIN.format(folder=HUB_ID)
    else:
        cargo.pack_model(folder / "model", place)
    if adapter and not config.merge:
        cargo.name_base(place, base.id, commit)


def _published(run: dict[str, Any], config: HubConfig, base: Base, commit: str | None) -> dict[str, Any]:
    """The record as it shall be in the repository: it names what is there, by ids of the Hub."""
    backbone = run["backbone"]
    if base.id:
        backbone = backbone | {"name": base.id, "hub_id": base.id, "commit": commit, "revision": None}
    elif backbone["name"] == "demo":
        backbone = backbone | {"name": DEMOS[run["task"]]}
    branch = config.revision
    snippet = run["hub_snippet"].replace(f":{HUB_ID}", f":{HUB_ID}@{branch}" if branch else f":{HUB_ID}")  # timm's
    at = f", revision={branch!r}" if branch else ""
    snippet = snippet.replace(repr(HUB_ID), f"{config.push_to!r}{at}").replace(HUB_ID, str(config.push_to))
    return run | {"snippet": snippet, "backbone": backbone}


def _command(folder: Path, config: HubConfig, data_path: str | None) -> str:
    """What to type to push again, with all that was asked for."""
    given = {f"hub.{name}": value for name, value in vars(config).items() if name != "push_to"}
    given["data.path"] = data_path
    flags = [[f"--{name}", *([] if value is True else [str(value)])] for name, value in given.items() if value]
    return shlex.join(["graft", "push", str(folder), str(config.push_to), *chain.from_iterable(flags)])


def _read_notes(config: HubConfig) -> str | None:
    """The user's own words for the card, which must hold nothing that should not leave."""
    if config.card is None:
        return None
    notes = read_notes(config.card)
    cargo.inspect_secrets(f"--hub.card {config.card}", notes)
    if found := cargo.EMAIL.search(notes):
        raise UserError(f"--hub.card {config.card} holds an e-mail address ({found[0]}); remove it")
    return notes


def _command(folder: Path, config: HubConfig, data_path: str | None) -> str:
    """What to type to push again, with all that was asked for."""
    given = {f"hub.{name}": value for name, value in vars(config).items() if name != "push_to"}
    given["data.path"] = data_path
    flags = [[f"--{name}", *([] if value is True else [str(value)])] for name, value in given.items() if value]
    return shlex.join(["graft", "push", str(folder), str(config.push_to), *chain.from_iterable(flags)])


def _check_ours(remote: client.Remote, config: HubConfig) -> None:
    """Raise UserError for a repository that holds a model which no push of graftkit made."""
    foreign = set(remote.files) - {".gitattributes", cargo.CARD}
    if remote.manifest is None and foreign and not config.create_pr:  # its owner may refuse a request
        raise UserError(
            f"{config.push_to} exists and holds what graftkit did not push ({min(foreign)}): name another repository, "
            "or another --hub.revision of an own one"
        )


def _commit_title(metrics: dict[str, Any]) -> str:
    headline = metrics["test"]["headline"]
    return f"Model with {title(headline['name'])} {number(headline['value'], 2)} on test"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

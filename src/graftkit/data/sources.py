"""Where do the rows lie?

Finds the files or the Hub's data set behind `--data.path`, `.train`, `.dev` and `.test`, for any task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.files import READERS, Table, read_file
from graftkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DEMO = "demo"  # the path of the data set that ships in this package
DEMO_FOLDER = Path(__file__).parent / "support"

SPLIT_NAMES = {"train": ["train"], "dev": ["dev", "validation", "valid", "val"], "test": ["test"]}

SHARD = re.compile(r"-\d+-of-\d+$")  # train-00000-of-00001.parquet, as the Hub names its files
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """One place with rows, not opened yet."""

    where: str  # how messages name it
    open: Callable[[], Table]


@dataclass(frozen=True)
class Places:
    """What is found in folders, by what rows hold: texts stand in files, pictures may be files of their own."""

    demos: Mapping[str, Callable[[], dict[str, Source]]]  # the data sets that ship with graftkit, by path
    in_folder: Callable[[Path, str], dict[str, Source]]  # a folder's splits by name; messages call it as the text says
    at: Callable[[Path, str], Source | None]  # the rows of one file or folder; None where it is none


def load_tables(
    path: str, subset: str | None, named: Mapping[str, str | None], places: Places | None = None
) -> tuple[dict[str, Table], list[str]]:
    """The rows of train, and of dev and test where they are there; and notes for the log.

    `named` says for each split which file or which of the path's own splits it is, or None to find it by its name.
    """
    sources, notes = find_sources(path, subset, named, places)
    tables = {split: source.open() for split, source in sources.items()}
    return tables, notes + [note for table in tables.values() for note in table.notes]


def find_sources(
    path: str, subset: str | None, named: Mapping[str, str | None], places: Places | None = None
) -> tuple[dict[str, Source], list[str]]:
    """The source of each split that there is, train always; and notes for the log. By default rows stand in files."""
    places = places or FILES
    _check_subset(path, subset, places)
    offered = _offer(path, subset, named, places) if reads_path(path, named["train"]) else {}
    chosen = {split: _choose(split, name, path, offered, places) for split, name in named.items()}
    sources = {split: source for split, source in chosen.items() if source is not None}
    if "train" not in sources:
        raise UserError(f"no train split in {path}; found {_listed(offered)}. Set --data.train")
    return sources, _notes(path, sources, offered)


def load_test(path: str, subset: str | None, test: str | None, places: Places | None = None) -> tuple[Table, list[str]]:
    """The rows to score a model on, and notes for the log: those that `test` names, or what is named like a test split.

    Where the path holds only one split, that is it, whatever its name.
    """
    places = places or FILES
    _check_subset(path, subset, places)
    offered = _offer(path, subset, {"test": test}, places) if reads_path(path, test) else {}
    source = _choose("test", test, path, offered, places)
    if source is None and len(offered) > 1:
        raise UserError(f"no test split in {path}; found {_listed(offered)}. Set --data.test to one of them")
    source = source or next(iter(offered.values()))
    notes = _notes(path, {"test": source}, offered)
    table = source.open()
    return table, notes + table.notes


def _check_subset(path: str, subset: str | None, places: Places) -> None:
    if subset is not None and (path in places.demos or Path(path).expanduser().exists()):
        raise UserError(f"--data.subset {subset} is for data sets on the Hub, and {path} is none")


def _notes(path: str, sources: Mapping[str, Source], offered: Mapping[str, Source]) -> list[str]:
    """Which sources are used, and which of the path's are not. UserError where none of the path's is."""
    used = {source.where for source in sources.values()}
    unused = [name for name, source in offered.items() if source.where not in used]
    if offered and len(unused) == len(offered):
        raise _nothing_read(path, sources)
    notes = ["; ".join(f"{split}: {source.where}" for split, source in sources.items())]
    return notes + [f"not used of {path}: {_listed(unused)}"] * bool(unused)


def reads_path(path: str, first: str | None) -> bool:
    """Whether the path counts: it is the demo by default, and who brings a file to train on does not mean that.

    `first` is the setting of train, or of test where nothing is trained.
    """
    return path != DEMO or not _names_file(first)


def _choose(split: str, name: str | None, path: str, offered: Mapping[str, Source], places: Places) -> Source | None:
    """What the user named, or else what goes by the split's name; a single source by any other name is train."""
    if _names_file(name):
        return _named_file(split, name, path, places)
    if name is not None:
        if name not in offered:
            raise UserError(f"no split {name!r} in {path}; found {_listed(offered)}. Set --data.{split}")
        return offered[name]
    found = [source for source in offered if _bare(source) in SPLIT_NAMES[split]]
    if len(found) > 1:
        raise UserError(f"{_listed(found)} of {path} could each be the {split} split. Set --data.{split} to one")
    if split == "train" and not found and len(offered) == 1:
        found = [source for source in offered if _bare(source) not in SPLIT_NAMES["dev"] + SPLIT_NAMES["test"]]
    return offered[found[0]] if found else None


def _bare(name: str) -> str:
    """`train` for train, Train.csv and train-00000-of-00001.parquet."""
    return SHARD.sub("", Path(name).stem).lower()


def _names_file(name: str | None) -> bool:
    """Whether a setting names a file, not a split: a split's name has neither suffix nor folder."""
    return name is not None and (Path(name).suffix != "" or len(Path(name).parts) > 1)


def _named_file(split: str, name: str, path: str, places: Places) -> Source:
    """The file in the folder that the path is, or else the file as seen from here."""
    in_folder = path not in places.demos and Path(path).expanduser().is_dir()
    for place in [Path(path, name).expanduser()] * in_folder + [Path(name).expanduser()]:
        source = places.at(place, str(place))
        if source is not None:
            return source
    looked = f" (neither in {path} nor here)" if in_folder else ""
    raise UserError(f"no such file: {name}{looked}. Set --data.{split} to a file or to the name of a split")


def from_file(place: Path, where: str) -> Source | None:
    """The rows of a file, if it is one."""
    return Source(where, partial(read_file, place, where)) if place.is_file() else None


def _nothing_read(path: str, named: Mapping[str, Any]) -> UserError:
    name = "--data.train and the others name files" if "train" in named else "--data.test names a file"
    return UserError(f"nothing is read of --data.path {path}: {name}. Leave it out")


# what the path holds


def _offer(path: str, subset: str | None, named: Mapping[str, str | None], places: Places) -> dict[str, Source]:
    """The path's own splits by name, in order."""
    if path in places.demos:
        return places.demos[path]()
    place = Path(path).expanduser()
    if place.is_dir():
        return places.in_folder(place, path)
    if place.is_file():
        return {"train": places.at(place, path)}
    if not HUB_ID.fullmatch(path) or Path(path).suffix.lower() in READERS:
        raise UserError(f"no such file or folder: {path}. Set --data.path")
    if all(_names_file(name) for name in named.values()):
        raise _nothing_read(path, named)
    return _offer_hub(path, subset)


def data_files(place: Path) -> list[Path]:
    """The files in a folder that hold rows, by name."""
    return [f for f in sorted(place.iterdir()) if f.is_file() and f.suffix.lower() in READERS and f.name[0] != "."]


def offer_files(files: Sequence[Path], path: str, taken: Sequence[str] = ()) -> dict[str, Source]:
    """Each file by its bare name, or by its whole name where others share the bare one, or it is taken."""
    stems = [SHARD.sub("", file.stem) for file in files]
    alone = [stem not in taken and stems.count(stem) == 1 for stem in stems]
    return {
        stem if bare else file.name: from_file(file, str(Path(path, file.name)))
        for stem, bare, file in zip(stems, alone, files, strict=True)
    }


def _offer_folder(place: Path, path: str) -> dict[str, Source]:
    files = data_files(place)
    if not files:
        raise UserError(f"no data in the folder {path}: no file there ends in {', '.join(READERS)}")
    return offer_files(files, path)


FILES = Places(demos={DEMO: partial(_offer_folder, DEMO_FOLDER, DEMO)}, in_folder=_offer_folder, at=from_file)


def _offer_hub(path: str, subset: str | None) -> dict[str, Source]:
    whole = path if subset is None else f"{path}/{subset}"
    splits = _load_from_hub(path, subset)
    wheres = {split: f"{whole} ({split})" for split in splits}
    return {split: Source(wheres[split], partial(_hub_table, wheres[split], rows)) for split, rows in splits.items()}


def _load_from_hub(path: str, subset: str | None) -> DatasetDict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return load_dataset(path, subset)
    except DatasetNotFoundError as error:
        reason = _one_line(error)
        raise UserError(f"no file or folder {path} here, and no such data set on the Hub: {reason}") from error
    except ConnectionError as error:
        reason = _one_line(error)
        raise UserError(
            f"no file or folder {path} here, and the Hub cannot be asked for a data set of that name: {reason}"
        ) from error
    except (DatasetsError, HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        cure = ". Set --data.subset" if "config" in str(error).lower() else ""
        raise UserError(f"cannot load {path} from the Hub: {_one_line(error)}{cure}") from error


def _hub_table(where: str, rows: Dataset) -> Table:
    if not len(rows):
        raise UserError(f"{where} is empty: it has no rows")
    return Table(where, rows, np.arange(1, len(rows) + 1))


def _listed(names: Mapping[str, Source] | list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

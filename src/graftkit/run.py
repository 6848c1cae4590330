"""Where does this run live?"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from graftkit import __version__
from graftkit.config import NotNegativeInt, differences, to_dict, to_yaml
from graftkit.download import origin_of, pin
from graftkit.energy import Meter, start_meter
from graftkit.errors import UserError
from graftkit.machine import (
    cache_folder,
    choose_precision,
    git_commit,
    hardware,
    keep_freed_memory,
    peak_memory,
    processes_asked_for,
    threads,
    use_all_cores,
    versions,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
NOT_KEPT = ("out", "resume", "overwrite", "until")
FOUND = ("training", "audit", "explanations", "rate_range", "teacher")  # in the record by earlier parts of a run
READ = {"backbone": ("name",), "train": ("teacher",), "data": ("path", "train", "dev", "test")}
"""By section, the settings that may name a file or a folder which a run reads."""
BUILT_IN = ("demo", "demo-gpt", "demo-t5", "demo-source")  # what a setting names so is no folder


@dataclass(frozen=True)
class RunConfig:
    """Where does this run live?"""

    out: str | None = None
    """folder of the run; by default runs/<recipe>-<time>"""
    seed: NotNegativeInt = 0
    """seed of the new head, the order of rows and dropout"""
    seeds: list[int] | None = None
    """train once per seed, such as 0 1 2, each into a folder of its own in --run.out, and report over them"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """numbers to train in; auto takes bf16 where the hardware has it, fp16 on older GPUs, else fp32"""
    headline: str | None = None
    """score that picks the best checkpoint; by default the task's own"""
    keep_rows: bool = True
    """keep the texts of dev and test rows in the run's folder, for the report"""
    resume: bool = False
    """go on with the run in --run.out where its newest checkpoint stands"""
    overwrite: bool = False
    """delete an earlier run in --run.out first"""
    trackers: list[str] | None = None
    """trackers of Accelerate, by name: tensorboard, wandb, mlflow ..."""
    dry_run: bool = False
    """load everything, try some updates, estimate memory and time, and stop"""
    until: Literal["dev", "test"] = "test"
    """end after this split; dev leaves the rows of test unasked, and --run.resume without it then goes on to the end"""


def check_texts_kept(settings: RunConfig) -> None:
    """Raise UserError for `--run.keep_rows false` where a task's records are texts of the data, as answers are."""
    if not settings.keep_rows:
        raise UserError("--run.keep_rows false: scores follow from the texts in the run's tables; leave it out")


def check_until(config: Any) -> None:
    """Raise UserError for `--run.until dev` where the run is to be shared, or was on test before."""
    settings: RunConfig = config.run
    if settings.until == "test":
        return
    if hasattr(config, "hub") and config.hub.push_to is not None:
        raise UserError(f"--hub.push_to {config.hub.push_to} needs scores of test; leave out --run.until dev")
    if settings.resume and settings.out is not None and (Path(settings.out) / "report.html").exists():
        raise UserError(f"--run.until dev: the run in {settings.out} went on to test before; name another --run.out")


def rehearsed(config: Any) -> Any:
    """The settings with `run.dry_run` where `--adapt.explain` asks for one: it too loads all, and touches no folder."""
    if not getattr(getattr(config, "adapt", None), "explain", False):  # an evaluation has no such section
        return config
    for name in ("resume", "dry_run"):
        if getattr(config.run, name):
            raise UserError(f"--adapt.explain prints a table and stops, so --run.{name} does nothing; leave it out")
    return replace(config, run=replace(config.run, dry_run=True))


def not_kept(config: Any) -> tuple[str, ...]:
    """Settings that say nothing of what a run is: where and how often it ran, and where it is shared."""
    where = tuple(f"run.{name}" for name in NOT_KEPT if name in vars(config.run))  # an evaluation is never resumed
    return where + tuple(f"hub.{name}" for name in vars(config.hub)) if hasattr(config, "hub") else where


class Run:
    """A run's folder, its accelerator, and its record: what it is, what it did, and what it cost."""

    def __init__(self, accelerator: Accelerator, folder: Path, config: Any, recipe: str):
        self.accelerator = accelerator
        self.folder = folder
        self.settings: RunConfig = config.run
        self.seed: int = config.run.seed
        self.config = to_dict(config)
        self.config_yaml = to_yaml(config, leave_out=not_kept(config))
        self.headline, self.lower = "", False  # settled when the task is known; lower: less of it is better
        self.spent, self.peak = 0.0, {}  # seconds and GiB of earlier parts of this run
        self.started = time.perf_counter()
        self.meter = start_meter() if self.main else Meter({})
        self.joules = dict.fromkeys(self.meter.read(), 0.0)  # of earlier parts of this run
        self.record: dict[str, Any] = {
            "graftkit": __version__,
            "recipe": recipe,
            "command": _command(),
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "root_folders": sorted(path.name for path in Path(Path.cwd().anchor).iterdir()),  # to know a path of here
            "seed": self.seed,
            "notes": [],
            "warnings": [],
            "seconds": {},
        }

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.accelerator.is_main_process

    def say(self, text: str, *, warning: bool = False) -> None:
        """Print a sentence and keep it in the record."""
        self.record["warnings" if warning else "notes"].append(text)
        if self.main:
            print(f"warning: {text}" if warning else text, flush=True)

    def log(self, event: dict[str, Any]) -> None:
        """Append an event to log.jsonl, which holds no clock times, its time to timing.jsonl, and tell the trackers."""
        if self.settings.trackers:
            self.accelerator.log(_scalars(event), step=event["update"])
        if not self.main:
            return
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")
        timing = {"update": event.get("update"), "seconds": round(time.perf_counter() - self.started, 3)}
        with open(self.folder / "timing.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(timing) + "\n")

    def log_size(self) -> int:
        """Bytes of log.jsonl so far, as a checkpoint remembers them."""
        path = self.folder / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Cut log.jsonl back to what it held at a checkpoint."""
        path = self.folder / "log.jsonl"
        if self.main and path.exists():
            os.truncate(path, size)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the block into the record, under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.record["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def end(self) -> None:
        """Close meter and trackers. The group of processes stays until the program ends: another run may follow."""
        self.meter.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def save_record(self) -> None:
        """Write run.json as it stands."""
        self.record["seconds"]["total"] = round(self.spent + time.perf_counter() - self.started, 3)
        now = peak_memory()
        self.record["peak_memory_gib"] = {
            name: None if value is None else max(value, self.peak.get(name) or 0.0) for name, value in now.items()
        }
        joules = self.meter.read().items()
        self.record["energy"] = {name: round(self.joules[name] + now, 1) for name, now in joules if name in self.joules}
        if self.main:
            write_aside(self.folder / "run.json", json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")

    def introduce(self, task: Any, splits: Any) -> None:
        """Say which rows there are, and settle the headline. Raises UserError for a headline that the task lacks."""
        self.headline = self.settings.headline or task.headline
        if self.headline not in task.headlines:
            raise UserError(f"--run.headline {self.headline}: this task has {', '.join(task.headlines)}")
        self.lower = self.headline in task.lower
        if not self.settings.dry_run:
            self.once(self._claim_folder)
        if self.settings.trackers and not self.settings.dry_run:
            flat = {f"{section}.{k}": str(v) for section, values in self.config.items() for k, v in values.items()}
            self.accelerator.init_trackers(f"graftkit-{self.record['recipe']}", config=flat)
        self.record |= {"task": task.name, "headline": self.headline, "lower_is_better": self.lower}
        self.record |= {"labels": task.labels, "data": splits.facts}
        for note in splits.notes:
            self.say(note)
        for warning in splits.warnings:
            self.say(warning, warning=True)

    def _claim_folder(self) -> None:
        """Make the folder, in place of an earlier run where that was asked for, and put the settings in it."""
        if self.settings.overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--run.out {self.folder} cannot be made: {error.strerror}") from error
        if not (self.folder / "config.yaml").exists():
            write_aside(self.folder / "config.yaml", self.config_yaml)

    def continue_record(self, before: dict[str, Any]) -> None:
        """Take over from the record of a run that is resumed: its command, and the time and memory spent."""
        backbone = before.get("backbone") or {}
        if backbone.get("commit"):
            pin(backbone["name"], backbone["revision"], backbone["commit"])
        teacher = before.get("teacher") or {}
        if teacher.get("commit"):
            pin(teacher["name"], None, teacher["commit"])
        self.record["command"] = before["command"]
        self.record["seconds"] = dict(before["seconds"])
        self.record |= {name: before[name] for name in FOUND if name in before}
        self.spent = before["seconds"].get("total", 0.0)
        self.peak = before.get("peak_memory_gib") or {}
        self.joules = before.get("energy") or {}

    def describe(self, adapted: Any, config: Any) -> None:
        """Say what trains, of how much."""
        facts = adapted.facts(config.adapt.strategy)
        share = facts["trained_parameters"] / facts["total_parameters"]
        origin = origin_of(config.backbone.name, config.backbone.revision)
        hub = {"hub_id": origin and origin.repo, "commit": origin and origin.commit}
        more = {"architecture": adapted.architecture, **hub}
        self.record |= {"adapt": facts, "backbone": self.config["backbone"] | more}
        self.say(
            f"{facts['description']}: {facts['trained_parameters']:,} of {facts['total_parameters']:,} "
            f"parameters ({share:.1%})"
        )

    def once(self, action: Callable[[], T]) -> T:
        """What `action` returns on the main process, or an error, on every process: see `once`."""
        return once(self.accelerator, action)


def once(state: Any, action: Callable[[], T]) -> T:
    """Run `action` on the main process alone; every process gets its result, or an error, and none waits for ever.

    The user's mistake is a UserError on all of them, any other error a RuntimeError on the others.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            mistake = isinstance(error, UserError)
            failure, outcome[1] = error, (mistake, str(error) if mistake else f"{type(error).__name__}: {error}")
    broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        mistake, said = outcome[1]
        raise UserError(said) if mistake else RuntimeError(f"the main process failed: {said}")
    return outcome[0]


def open_run(recipe: str, config: Any) -> Run:
    """Make or reopen the folder of a run, and start Accelerate.

    Raises UserError where the folder holds something and neither resume nor overwrite is set, where a setting changed
    since the run that is resumed, or where the hardware lacks the precision.
    """
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import parse_flag_from_env

    for sharded in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{sharded}"):
            raise UserError(
                f"{sharded}: not supported, since each process holds the whole model here. In accelerate's file set "
                "distributed_type to MULTI_GPU; for memory, --train.checkpointing or --adapt.strategy lora"
            )
    check_until(config)
    config = rehearsed(config)
    AcceleratorState._reset_state()  # a second run in this process may have another precision
    _quiet()
    keep_freed_memory()
    settings: RunConfig = config.run
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # told of CPUs, it forms a group of their processes under torchrun; the main one may decode pictures for long
    state = PartialState(cpu=on_cpu, timeout=timedelta(hours=6))
    atexit.register(_leave_group)
    if state.device.type == "cpu" and state.num_processes == 1:
        use_all_cores()
    precision = choose_precision(settings.precision, state.device.type)
    folder = Path(once(state, lambda: str(_choose_folder(recipe, config))))
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=_known_trackers(settings.trackers),
        project_dir=str(folder),
    )
    run = Run(accelerator, folder, config, recipe)
    run.record |= {
        "processes": accelerator.num_processes,
        "threads": threads(),
        "device": str(accelerator.device),
        "precision": precision,
    }
    if settings.resume and (folder / "run.json").exists():
        run.continue_record(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    processes = "1 process" if accelerator.num_processes == 1 else f"{accelerator.num_processes} processes"
    run.say(
        f"{recipe} in {folder} on {accelerator.device.type} ({processes}, {run.record['threads']} threads, {precision})"
    )
    _warn_of_missing_processes(run)
    return run


def _leave_group() -> None:
    """Part from the other processes in good order."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def kept_run(config: Any, main: Callable[[Any], Any]) -> Path:
    """The folder of a finished run with these settings in the cache folder; `main` makes it where there is none yet.

    It goes by its settings and the versions of the packages, since these decide what comes out. It is made under a name
    of its own and renamed when it is whole, so that two programs that make it at once do not meet.
    """
    from accelerate import PartialState

    folder = kept_folder(config)
    if not (folder / "metrics.json").exists():
        program = os.getppid() if "RANK" in os.environ else os.getpid()  # the launcher's, for all of its processes
        mine = folder.with_name(f"{folder.name}.{program}")
        plain = {"resume": False, "overwrite": True, "dry_run": False, "until": "test"}
        main(replace(config, run=replace(config.run, out=str(mine), **plain)))
        once(PartialState(), lambda: _rename_or_remove(mine, folder))
    return folder


def kept_folder(config: Any) -> Path:
    """The folder in the cache folder of a run with these settings; it is whole where it holds metrics.json."""
    made_by = {"graftkit": __version__, **versions()}
    facts = to_yaml(config, leave_out=not_kept(config)) + json.dumps(made_by, sort_keys=True)
    return cache_folder() / "runs" / hashlib.sha256(facts.encode()).hexdigest()[:16]


def _rename_or_remove(mine: Path, folder: Path) -> None:
    try:
        mine.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(mine)  # another program was first


def _choose_folder(recipe: str, config: Any) -> Path:
    """The folder that the run will have; nothing in it is touched before the data are found good."""
    settings: RunConfig = config.run
    if settings.dry_run:
        folder = Path(tempfile.mkdtemp(prefix="graftkit-dry-run-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    if settings.resume and settings.overwrite:
        raise UserError("--run.resume and --run.overwrite exclude each other; choose one")
    if settings.resume:
        return check_resume(config)
    folder = Path(settings.out or f"runs/{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run.out {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        if not settings.overwrite:
            resume = "--run.resume, " if "resume" in vars(settings) else ""
            raise UserError(f"--run.out {folder} is not empty; set {resume}--run.overwrite or another folder")
        if not (folder / "config.yaml").exists():
            raise UserError(f"--run.overwrite: {folder} holds no run of graftkit, so nothing in it is deleted")
        _check_spared(folder, config)
    return folder


def _check_spared(folder: Path, config: Any) -> None:
    """Raise UserError where a run would delete what it reads: a checkpoint, a teacher or data in an earlier run."""
    for section, names in READ.items():
        for name in names:
            given = getattr(getattr(config, section, None), name, None)
            if given is None or given in BUILT_IN or not (path := Path(given).expanduser()).exists():
                continue
            if path.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"--run.overwrite would delete {folder}, in which --{section}.{name} {given} lies; name another "
                    "--run.out"
                )


def check_resume(config: Any) -> Path:
    """The folder to go on in. Raises UserError where it holds no run, or one of other settings."""
    import yaml

    if config.run.out is None:
        raise UserError("--run.resume needs --run.out FOLDER, the run to go on with")
    folder = Path(config.run.out)
    if not (folder / "config.yaml").exists():
        raise UserError(f"--run.resume: {folder} holds no run (no config.yaml)")
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    now = yaml.safe_load(to_yaml(config, leave_out=not_kept(config)))
    changed = differences(saved, now)
    if changed:
        raise UserError(f"--run.resume: settings differ from those of {folder}: {'; '.join(changed)}")
    return folder


def _known_trackers(names: list[str] | None) -> list[str] | None:
    if not names:
        return None
    from accelerate.tracking import get_available_trackers

    available = sorted(str(tracker) for tracker in get_available_trackers())
    missing = [name for name in names if name not in available]
    if missing:
        raise UserError(
            f"--run.trackers {','.join(missing)}: not installed, or no tracker of Accelerate; "
            f"installed: {', '.join(available) or 'none'}"
        )
    return names


def _warn_of_missing_processes(run: Run) -> None:
    """Accelerate starts one process, silently, where several were asked for on CPUs and there is no mpirun."""
    wanted = processes_asked_for()
    if wanted is not None and wanted > run.accelerator.num_processes:
        run.say(
            f"{wanted} processes were asked for, {run.accelerator.num_processes} started; on CPUs start them with "
            f"torchrun --nproc_per_node {wanted} {sys.argv[0]} ...",
            warning=True,
        )


def _scalars(event: dict[str, Any]) -> dict[str, float]:
    """An event as trackers take it: flat, and numbers only."""
    flat = {f"dev/{name}": value for name, value in event.get("dev", {}).items()}
    return flat | {name: value for name, value in event.items() if name not in ("dev", "update")}


def write_aside(path: Path, text: str) -> None:
    """Write a text aside, then rename it, so that a reader never sees half of it."""
    aside = path.with_name(f"{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _quiet() -> None:
    """One voice on the terminal: ours."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _command() -> str:
    import shlex

    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv[0].endswith("graft") else ["python", *sys.argv]
    return shlex.join(words)

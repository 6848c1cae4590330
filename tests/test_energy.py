"""Is energy counted where the machine tells of it, and left out where not?"""

from __future__ import annotations

from pathlib import Path

import pytest

from graftkit import energy
from graftkit.energy import Meter, package_counters
from graftkit.report import sections
from graftkit.run import Run


def zone(folder: Path, name: str, kind: str, joules: float, most: float = 1000.0) -> Path:
    """A counter as Linux shows it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "name").write_text(f"{kind}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most * 1e6:.0f}\n")
    return count(folder / name, joules)


def count(place: Path, joules: float) -> Path:
    (place / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    return place


def test_packages_are_summed_and_start_over(tmp_path):
    one, other = zone(tmp_path, "intel-rapl:0", "package-0", 900), zone(tmp_path, "intel-rapl:1", "package-1", 5)
    others = zone(tmp_path, "intel-rapl:0:0", "core", 1), zone(tmp_path, "intel-rapl:2", "psys", 2)
    meter = Meter({"cpu_joules": package_counters(tmp_path)})
    assert meter.read() == {"cpu_joules": 0.0}
    count(one, 950)
    for place in others:  # a part of a package, and the whole machine
        count(place, 500)
    assert meter.read() == {"cpu_joules": 50.0}
    count(one, 20)  # past its end at 1,000
    count(other, 15.25)
    assert meter.read() == {"cpu_joules": 130.2}
    meter.close()


def test_a_counter_is_looked_at_before_it_starts_over_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "PERIOD", 0.01)
    place, looks = zone(tmp_path, "intel-rapl:0", "package-0", 0), []
    meter = Meter({"cpu_joules": package_counters(tmp_path)})
    monkeypatch.setattr(meter, "read", lambda: looks.append(place) or (len(looks) == 2 and meter.close()))
    assert meter._closed.wait(10)
    assert len(looks) >= 2


@pytest.mark.parametrize("breaks", ["energy_uj", "name", "max_energy_range_uj"])
def test_what_cannot_be_read_is_left_out(tmp_path, breaks):
    assert package_counters(tmp_path / "nowhere") == []
    (zone(tmp_path, "intel-rapl:0", "package-0", 900) / breaks).unlink()
    assert package_counters(tmp_path) == []


def test_a_machine_that_does_not_tell_starts_no_thread(monkeypatch):
    monkeypatch.setattr("threading.Thread.start", lambda self: pytest.fail("a thread was started"))
    assert Meter({}).read() == {}


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (None, {"cpu_joules": 40.0}),
        ({"cpu_joules": 100.5}, {"cpu_joules": 140.5}),
        ({}, {}),  # the earlier part was not counted, so the whole is not known
    ],
)
def test_a_run_adds_what_its_earlier_part_took(tmp_path, monkeypatch, before, expected):
    place = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    run = bare_run(tmp_path)
    if before is not None:
        run.continue_record({"command": "x", "seconds": {}, "energy": before})
    count(place, 50)
    run.save_record()
    run.end()
    assert run.record["energy"] == expected


def bare_run(folder: Path) -> Run:
    from dataclasses import dataclass, field
    from types import SimpleNamespace

    from graftkit.run import RunConfig

    @dataclass(frozen=True)
    class Config:
        run: RunConfig = field(default_factory=RunConfig)

    return Run(SimpleNamespace(is_main_process=True, trackers=[]), folder, Config(), "test")


@pytest.mark.parametrize(
    ("joules", "words"),
    [
        (
            {"cpu_joules": 45_000, "gpu_joules": 900},
            "Energy: 12 Wh by the processor, 0.25 Wh by the GPU, with all else",
        ),
        ({"gpu_joules": 3_600_000}, "Energy: 1,000 Wh by the GPU, with"),
        ({"cpu_joules": 3}, "Energy: under 0.01 Wh by the processor, with"),
        ({}, "Energy: not measured: this machine does not tell"),
        (None, "Energy: not recorded"),
    ],
)
def test_the_report_tells_it_in_watt_hours(joules, words):
    assert words in sections.costs({"energy": joules})

"""Write the data set that `recipes/translate.py` ships with: dates and times, as said and as written.

    python benchmarks/spoken_data.py src/graftkit/data/spoken

The same rows each time. What stands in a test sentence (a day with its month, a time) stands in no other split.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable
from pathlib import Path

ROWS = {"train": 1200, "dev": 100, "test": 200}
NAMES = """
_ one two three four five six seven eight nine ten eleven
_ first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
january february march april may june july august september october november december
"""
HOURS, ORDINALS, MONTHS = (line.split() for line in NAMES.strip().splitlines())
ORDINALS += ["sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"]
MINUTES = {
    0: "o'clock", 10: "ten", 15: "fifteen", 20: "twenty", 30: "thirty", 40: "forty", 45: "forty five", 50: "fifty",
}  # fmt: skip
FRAMES = """
we meet on {date} at {time}
the train leaves at {time} on {date}
the shop opens on {date} at {time}
your parcel arrives on {date}
dinner is at {time}
call me at {time} on {date}
""".strip().splitlines()


def ordinal(value: int) -> str:
    """The day of a month in words."""
    return ORDINALS[value] if value <= 20 else f"twenty {ORDINALS[value % 10]}"


def date(rng: random.Random) -> tuple[str, str, str]:
    """What is held out of the other splits (the day and the month), as said, as written."""
    month, day = rng.randrange(12), rng.randint(1, 28)
    said = rng.choice(["the {1} of {0}", "{0} the {1}"]).format(MONTHS[month], ordinal(day))
    return f"{day}.{month}", said, f"{month + 1:02}-{day:02}"


def time(rng: random.Random) -> tuple[str, str, str]:
    """Likewise a time of day."""
    hour, half, minute = rng.randint(1, 11), rng.choice([0, 12]), rng.choice(list(MINUTES))
    part = "in the morning" if not half else "in the afternoon" if hour < 6 else "in the evening"
    return f"{hour}.{half}.{minute}", f"{HOURS[hour]} {MINUTES[minute]} {part}", f"{hour + half:02}:{minute:02}"


SLOTS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {"date": date, "time": time}


def split_of(slot: str, held: str) -> str:
    """The split that this day or time belongs to, by chance that follows from itself."""
    return random.Random(f"{slot} {held}").choices(["train", "dev", "test"], [0.7, 0.1, 0.2])[0]


def row(split: str, rng: random.Random) -> tuple[str, str]:
    """A sentence of a split, as said and as written."""
    frame = rng.choice(FRAMES)
    said, written = {}, {}
    for slot, make in SLOTS.items():
        while True:
            held, said[slot], written[slot] = make(rng)
            if split_of(slot, held) == split:
                break
    return frame.format(**said), frame.format(**written)


def main(folder: Path) -> None:
    """Write the three files."""
    for split, count in ROWS.items():
        rng = random.Random(split)
        rows: dict[str, str] = {}
        while len(rows) < count:
            rows.update([row(split, rng)])
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("source", "target"), *rows.items()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

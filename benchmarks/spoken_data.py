"""Write the data set that `recipes/translate.py` ships with: dates, times and sums of money, as said and as written.

    python benchmarks/spoken_data.py src/graftkit/data/spoken

The same rows each time. What stands in a test sentence (a day with its month, a time, a sum) stands in no other split.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable
from pathlib import Path

ROWS = {"train": 1000, "dev": 80, "test": 200}
NAMES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
_ _ twenty thirty forty fifty sixty seventy eighty ninety
_ first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
january february march april may june july august september october november december
"""
UNITS, TENS, ORDINALS, MONTHS = (line.split() for line in NAMES.strip().splitlines())
UNITS += ["nineteen"]
ORDINALS += ["sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"]
FRAMES = """
please move the meeting to {date} at {time}
can you book a table for us on {date} at {time}
the train leaves at {time} on {date}
the invoice of {sum} is due on {date}
she paid {sum} for the tickets on {date}
we charged you {sum} on {date}
your parcel arrives on {date}
the shop is closed until {date}
my contract ends on {date}
i was born on {date}
dinner is served at {time}
wake me up at {time} please
the call starts at {time} and costs {sum}
bring {sum} in cash by {time}
the repair will cost about {sum}
i only have {sum} left
they refunded {sum} yesterday
the flight lands at {time}
""".strip().splitlines()


def number(value: int) -> str:
    """A number below 100 in words."""
    if value < 20:
        return UNITS[value]
    return TENS[value // 10] + (f" {UNITS[value % 10]}" if value % 10 else "")


def ordinal(value: int) -> str:
    """The day of a month in words."""
    if value <= 20:
        return ORDINALS[value]
    return "thirtieth" if value == 30 else f"{TENS[value // 10]} {ORDINALS[value % 10]}"


def date(rng: random.Random) -> tuple[str, str, str]:
    """What is held out of the other splits (the day and the month), as said, as written."""
    month, day, year = rng.randrange(12), rng.randint(1, 28), rng.randint(10, 39)
    said = rng.choice(["the {1} of {0}", "{0} the {1}"]).format(MONTHS[month], ordinal(day))
    return f"{day}.{month}", f"{said} twenty {number(year)}", f"20{year:02}-{month + 1:02}-{day:02}"


def time(rng: random.Random) -> tuple[str, str, str]:
    """Likewise a time of day."""
    hour, half = rng.randint(1, 11), rng.choice([0, 12])
    minute = rng.choice([0, 10, 15, 20, 25, 30, 40, 45, 50])
    words = {0: "{0} o'clock", 15: "quarter past {0}", 30: "half past {0}", 45: "quarter to {1}"}
    said = words.get(minute, "{0} " + number(minute)).format(number(hour), number(hour + 1))
    part = "in the morning" if not half else "in the afternoon" if hour < 6 else "in the evening"
    return f"{hour}.{half}.{minute}", f"{said} {part}", f"{hour + half:02}:{minute:02}"


def money(rng: random.Random) -> tuple[str, str, str]:
    """Likewise a sum of money."""
    whole, cents = rng.randint(2, 60), rng.choice([0, 0, 5 * rng.randint(2, 19)])
    unit, sign = rng.choice([("euros", "€"), ("pounds", "£"), ("dollars", "$")])
    said = f"{number(whole)} {unit}" + (f" and {number(cents)} cents" if cents and unit != "pounds" else "")
    if unit == "pounds" and cents:
        said += f" and {number(cents)} pence"
    return f"{whole}.{cents}", said, f"{sign}{whole}" + (f".{cents:02}" if cents else "")


SLOTS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {"date": date, "time": time, "sum": money}


def split_of(slot: str, held: str) -> str:
    """The split that this day, time or sum belongs to, by chance that follows from itself."""
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

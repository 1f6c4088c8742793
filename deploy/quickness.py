"""How quick this Python is: microseconds of one processor for calls, tuples, dicts and text. Fails for one that Holdfast cannot be installed with."""

import ensurepip  # noqa: F401 Debian leaves it out where python3-venv is not installed: then no virtual environment can be made
import sys
import time
import venv  # noqa: F401

ROUNDS, CALLS = 5, 20_000


class Pair:
    """Something that is made, asked and forgotten."""

    __slots__ = ("first", "second")

    def __init__(self, first: int, second: list[int]) -> None:
        self.first, self.second = first, second

    def plus(self, other: int) -> int:
        """A sum."""
        return self.first + other


def worked() -> None:
    """What decisions are made of, as far as the interpreter does it."""
    total, kept = 0, dict[int, tuple[Pair, int]]()
    for number in range(CALLS):
        pair = Pair(number, [number])
        total += pair.plus(2) + len(f"{number}:{total}".encode())
        kept[number & 255] = pair, total


def least_s() -> float:
    """The quickest of some rounds, in seconds."""
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        worked()
        took.append(time.process_time() - began)
    return min(took)


if __name__ == "__main__":
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit("Holdfast needs Python 3.11 to 3.13")
    print(round(least_s() * 1e6))

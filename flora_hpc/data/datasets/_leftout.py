"""Count the files that are dropped from a dataset, by reason, with an example of each."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN = "hidden, or written by the operating system"
NO_IMAGE = "no image, by its first bytes"
ARCHIVE = "an archive that is not unpacked"
BESIDE = "an image outside the folders of classes"
UNUSED = "in a folder that holds neither training nor test images"
AGAIN = "another way to a file or folder that is there already"
LOST = "a link that leads nowhere"
SPECIAL = "a pipe, socket or device"
NO_PART = "a member of a shard that is neither an image nor a caption"
FORBIDDEN = "must not be read by this user"


@dataclass
class LeftOut:
    """Counts of the dropped files below `root` by reason, and an example of each reason."""

    root: Path
    numbers: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str, number: int = 1) -> None:
        """Count a file. The example is the first path by name, since every machine lists folders in another order."""
        self.numbers[reason] += number
        self.examples[reason] = min(path, self.examples.get(reason, path))

    def reasons(self) -> dict[str, int]:
        """Map "reason, such as example" to the number of files."""
        return {f"{reason}, such as {self.shown(self.examples[reason])}": n for reason, n in sorted(self.numbers.items())}

    def shown(self, path: str) -> str:
        """A path relative to the root, printable on one line in UTF-8."""
        return printable(os.path.relpath(path, self.root))


def printable(name: str) -> str:
    """Replace control characters, and bytes that are not UTF-8, by escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)

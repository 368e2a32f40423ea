"""Files that are no images of a dataset: counts by reason, with an example of each."""

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
    """Counts of the files below `root` that are no images of the dataset, and an example of each reason."""

    root: Path
    numbers: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str, number: int = 1) -> None:
        """Count a file. The example is the first by its name, since folders are listed in another order on every machine."""
        self.numbers[reason] += number
        self.examples[reason] = min(path, self.examples.get(reason, path))

    def reasons(self) -> dict[str, int]:
        """reason with an example -> number of files."""
        return {f"{reason}, such as {self.shown(self.examples[reason])}": n for reason, n in sorted(self.numbers.items())}

    def shown(self, path: str) -> str:
        """A path below the root, for people: in one line and in UTF-8."""
        return printable(os.path.relpath(path, self.root))


def printable(name: str) -> str:
    """A name in which bytes that are not UTF-8, and control characters, are written as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)

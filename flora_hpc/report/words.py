"""A split in words: one sentence with its kind, and the numbers behind it."""

from typing import Any

import numpy as np

from flora_hpc.data.images import Ints
from flora_hpc.data.mix import Mix

ALIKE = 0.02  # clients have the same mix up to this mean divergence beyond chance, as a share of 1 - chance
EVEN = 0.3  # clients have one size up to this standard deviation of sizes over their mean
NO_TELLING = 0.4  # clients are not called alike beyond this mean divergence, as a share of that of clients with one class each
KINDS = ((0.1, "Mildly skewed"), (0.35, "Skewed"), (1.0, "Strongly skewed"))  # words for a share beyond ALIKE, up to each bound


def sentence(mix: Mix) -> str:
    """The kind of the split, in one sentence."""
    if mix.num_clients == 1:
        return f"One client: it holds {_sizes(mix)} of {_classes(mix)}."
    return f"{_kind(mix)}: {_classes(mix)}; {_sizes(mix)}."


def details(mix: Mix) -> dict[str, str]:
    """The numbers behind the sentence: label -> text."""
    rows = {"clients": f"{mix.num_clients:,}", "examples": _examples(mix)}
    if not mix.examined_all:
        rows["clients"] += f"; what follows is of {mix.num_examined:,} of them, spread evenly over all"
    if mix.num_clients > 1:
        least, most = int(mix.sizes.min()), int(mix.sizes.max())
        spread = f"{least:,} and {most:,} examples (median {np.median(mix.sizes):,.0f})"
        rows["smallest, largest"] = spread if least < most else f"{_num(least, 'example')} each"
    rows[f"{mix.units} per client"] = f"{_range(mix.classes)} of {mix.num_classes} (median {np.median(mix.classes):.0f})"
    rows["divergence"] = (
        f"{mix.divergences.mean():.2f} in the mean, {mix.divergences.max():.2f} at worst; {mix.by_chance:.2f} by chance alone"
    )
    if mix.num_nobodys is None:
        rows["nobody's"] = "not known: too many clients draw their own images"
    else:
        rows["nobody's"] = f"{mix.num_nobodys:,} of {mix.available.sum():,} training images" if mix.num_nobodys else "none"
    return rows


def numbers(mix: Mix) -> dict[str, Any]:
    """The same for programs; `counts` has a row for each of `clients`, which may be some of all clients."""
    return {
        "sentence": sentence(mix),
        "num_clients": mix.num_clients,
        "num_examined": mix.num_examined,
        "num_examples": mix.num_examples,
        "num_nobodys": mix.num_nobodys,
        "smallest": int(mix.sizes.min()),
        "median": float(np.median(mix.sizes)),
        "largest": int(mix.sizes.max()),
        "divergence_mean": float(mix.divergences.mean()),
        "divergence_max": float(mix.divergences.max()),
        "divergence_by_chance": mix.by_chance,
        "classes": list(mix.class_names),
        "clients": mix.clients.tolist(),
        "counts": mix.counts.tolist(),
    }


def plain(text: str, most: int) -> str:
    """A name on one line, at most `most` characters long, without anything that could steer a terminal."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    tail = (most - 1) // 3  # long names often differ at their ends
    return text if len(text) <= most else f"{text[: most - 1 - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"


def _kind(mix: Mix) -> str:
    """The kind of split. Small clients, and their mean, differ by chance; only the divergence beyond chance counts."""
    excess = float(mix.divergences.mean() - mix.by_chance) / max(1 - mix.by_chance, 1e-9)
    if excess > ALIKE + 0.5 * mix.by_chance / mix.num_examined**0.5:  # a client's divergence by chance varies by about half of it
        return next(words for most, words in KINDS if excess <= most)
    if mix.divergences.mean() > NO_TELLING * _of_one_class(mix):  # no more than by chance, but no likeness either
        return "Too few examples to tell from chance"
    return "IID" if mix.sizes.std() <= EVEN * mix.sizes.mean() else f"Alike in {mix.units}, not in size"


def _of_one_class(mix: Mix) -> float:
    """Mean divergence of clients that hold a single class each, as many for a class as it has images."""
    q = mix.available[mix.available > 0] / mix.available.sum()
    return float(q @ (np.log2(2 / (1 + q)) + q * np.log2(2 * q / (1 + q)) + 1 - q)) / 2


def _classes(mix: Mix) -> str:
    least, most, every = int(mix.classes.min()), int(mix.classes.max()), mix.num_classes
    of = f"all {every} {mix.units}" if least == every else f"{_range(mix.classes)} of {every} {mix.units}"
    of = of if every > 1 else f"the only {mix.unit}"
    return of if mix.num_clients == 1 else f"{'every client holds' if least == most else 'clients hold'} {of}"


def _sizes(mix: Mix) -> str:
    least, most = int(mix.sizes.min()), int(mix.sizes.max())
    if mix.num_clients == 1:
        return _num(least, "example")
    if most - least <= 1:
        return f"each has {_num(least, 'example') if least == most else f'{least:,} or {most:,} examples'}"
    if most / least < 2:
        return f"each has {least:,} to {most:,} examples"
    ratio = most / least
    times = f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}".removesuffix(".0")
    return f"the largest holds {times} times as much as the smallest"


def _examples(mix: Mix) -> str:
    about = "" if mix.examined_all else "about "
    if mix.overlap == 1:
        return f"{mix.held.sum() if mix.exact else mix.num_examples:,}, each in one client"
    text = f"{about}{mix.num_examples:,}, drawn by each client from {mix.available.sum():,} images"
    return f"{text}; one that is held is in {mix.overlap:,.1f} clients in the mean" if mix.examined_all else text


def _range(values: Ints) -> str:
    return f"{values.min():,}" if values.min() == values.max() else f"{values.min():,} to {values.max():,}"


def _num(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"

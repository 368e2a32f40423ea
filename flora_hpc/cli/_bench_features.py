"""`flora-hpc bench features`: images per second on the way into the feature store."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from flora_hpc.cli._args import AsJson, Device
from flora_hpc.cli._bench_page import columns, machine, page, print_result, progress_printer
from flora_hpc.records.views import seconds

NAMES = {
    "whole": "embedding",
    "decode": "  decode and preprocess",
    "tower": "  image tower",
    "store": "  digest and write",
    "again": "embedding again",
    "read": "  read back",
}


class Encoding(StrEnum):
    """How images are stored."""

    jpeg = "jpeg"
    png = "png"


def features(
    model: Annotated[str, typer.Option(help="'flora-tiny' or a name of open_clip.list_models(), with random weights")] = "ViT-B-32",
    images: Annotated[int, typer.Option(min=1, help="images of a repeat, in blocks of 256")] = 512,
    side: Annotated[int, typer.Option(min=1, help="pixels of an image's side")] = 256,
    encoding: Annotated[Encoding, typer.Option(help="how images are stored")] = Encoding.jpeg,
    repeats: Annotated[int, typer.Option(min=1, help="timed repeats, of which the median counts")] = 3,
    device: Annotated[Device, typer.Option(help="auto takes a GPU when there is one")] = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Measure the embedding of images: decoding, image tower, store."""
    from flora_hpc.bench import features as part  # torch and open_clip take seconds to import
    from flora_hpc.bench import methods

    methods.check(model, [], device.value)

    result = part.measure(part.Task(model, images, side, encoding.value, repeats, device.value), progress_printer())
    print_result(result, as_json, show)


def in_bf16(bf16: dict[str, float] | None) -> str:
    """The gain and the error of features.compute: bf16."""
    if bf16 is None:
        return "this device does not multiply in it"
    faster = f"the image tower takes {seconds(bf16['seconds'])}, {bf16['speedup']:.2f} times as fast"
    return f"{faster}; features are {bf16['error']:.1e} off"


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the measurement as a table, and the meaning of the numbers."""
    side, size = result["side"], decimal(round(result["encoded_bytes"]))
    what = f"{result['num_images']:,} {result['encoding']} images of {side} x {side} pixels, {size} each"
    table = columns(["part"], ["time", "images\nper second", "share\nof the work"])
    for part, name in NAMES.items():
        rate, share = result["images_per_second"][part], result["shares"].get(part)
        table.add_row(name, seconds(result["seconds"][part]), f"{rate:,.0f}", "" if share is None else f"{share:.1%}")
    sizes = ", ".join(f"{decimal(num_bytes)} as {name}" for name, num_bytes in result["store_bytes"].items())
    notes = {
        "measured": f"medians of {result['repeats']} repeats; the parts one by one, while embedding decodes the next images as "
        "the tower works; embedding again digests the images and finds their features, of which every number is read",
        "in bf16": in_bf16(result["bf16"]),
        "kept": f"{result['embed_dim']:,} numbers an image: {sizes}",
        "machine": machine(result),
    }
    page(console, f"{result['model']}, {what}", table, [], notes, {"embedding": result["repeat_seconds"]})

"""`flora-hpc data`: fetch, pack and inspect datasets; compute and manage the features of their images."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flora_hpc import configfile
from flora_hpc.cli._args import AsJson, ConfigFile, Overrides, Plugins, use_plugins
from flora_hpc.cli._cache import cache
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch, stop
from flora_hpc.config import Config
from flora_hpc.errors import UserError

BATCH = 256  # images decoded between two steps of the progress bar

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Fetch, pack and look at datasets; compute and manage the features of their images."""


def embed(config: ConfigFile, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Compute the features of all images, so that runs find them. Any launcher will do: all ranks work on it.

    May be stopped and started again at any time; what was computed is kept.
    """
    me, started = launch.detect(), time.perf_counter()

    def load() -> Config:
        use_plugins(plugin)
        resolved, notes = configfile.load(config, overrides)
        if resolved.features.store == "none":
            raise UserError("features.store: is none, so that nothing would be kept; set it to a folder, or leave it out")
        for note in notes:
            print(f"note: {note}")
        return resolved

    with job_with_config(me, load, lambda: configfile.load_comm(config, overrides)) as (comm, resolved):
        from flora_hpc import jobs  # torch and open_clip take seconds to import

        bar = Bar("features", live=sys.stderr.isatty() and me.launcher != "openmpi")  # whose ranks always have a terminal
        try:
            dataset, embedded = jobs.embed_all(resolved, comm, me, bar)
        finally:
            bar.close()
        total, seconds = len(dataset.images), time.perf_counter() - started
        size = decimal(embedded.values.nbytes)
        print(f"{dataset.name} through {resolved.model.name}: {total:,} images, {embedded.num_computed:,} of them computed now")
        if embedded.damaged:
            print(f"left out: {len(embedded.damaged):,} images that cannot be decoded; their features are NaN")
        print(f"kept: {embedded.place} ({size}), after {seconds:.1f} s")


def inspect(
    config: ConfigFile,
    overrides: Overrides = None,
    plugin: Plugins = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also draw it into a .png or .svg file", show_default=False)
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="also write who holds which image into a .npz or .csv file", show_default=False),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="with --rows: of the first N clients alone", show_default=False)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="with --rows: write over a file that is there")] = False,
    check: Annotated[bool, typer.Option("--check", help="decode every image, and name those that cannot be")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which client holds which images: sizes, classes, how far each client is from the whole. Needs no model."""
    use_plugins(plugin)
    resolved, notes = configfile.load(config, overrides)
    for note in [] if as_json else notes:
        print(f"note: {note}")

    from flora_hpc import plugins
    from flora_hpc.data import checks, holdings
    from flora_hpc.data import rows as tables
    from flora_hpc.data.images import with_validation
    from flora_hpc.data.mix import mix_of
    from flora_hpc.report import split, words

    if picture is not None:  # refuse a wrong name now, not after an hour of decoding
        split.check(picture)
    if rows is not None:
        tables.check(rows, replace)
    if clients is not None and rows is None:
        raise UserError("--clients: says of how many clients --rows writes the images; give --rows FILE, too")
    dataset = plugins.member("datasets", resolved.data.name).build(resolved.data)
    dataset = with_validation(dataset, getattr(resolved.data, "validation_fraction", 0))
    skips = getattr(resolved.data, "damaged", "refuse") == "skip"
    inspection = inspect_all(dataset) if check or skips else None
    damage = {} if inspection is None else inspection.damaged
    damaged = None if inspection is None else [f"{dataset.images.where(row)}: {why}" for row, why in sorted(damage.items())]
    if damage and skips:
        dataset = dataset.drop(sorted(damage))
    dataset = checks.checked(dataset)
    partition: Any = resolved.partition
    _, train = holdings.for_server(dataset.train, resolved.server_images, resolved.seed)
    holders = holdings.make(partition, dataset.images, train, resolved.seed, dataset.test)
    warnings = [*dataset.warnings, *holders.warnings, *(inspection.warnings(dataset.images) if inspection else ())]
    unit = "caption" if dataset.paired else "class"
    mix = mix_of(holders, dataset.images.labels, dataset.train, dataset.wordings, unit=unit)
    options = resolved.partition.model_dump(exclude={"name", "num_clients"}, exclude_none=True)
    settings = (f"{name.replace('_', ' ')} {value}" for name, value in options.items() if (name, value) != ("min_examples", 1))
    rule = ", ".join([resolved.partition.name, *settings])
    if as_json:
        sizes = {"num_test": len(dataset.test), "num_validation": len(dataset.validation)}
        numbers = words.numbers(mix) | {"dataset": dataset.name, "partition": rule} | sizes
        numbers |= {"left_out": dict(dataset.left_out), "warnings": warnings}
        json.dump(numbers if damaged is None else numbers | {"damaged": damaged}, sys.stdout)
        print()
    else:
        print_split(dataset, mix, rule, warnings, damaged, skips)
    if picture is not None:
        split.figure(mix, picture, f"{dataset.name} over {mix.num_clients:,} clients: {rule}")
        print(f"drawn: {picture}", file=sys.stderr)
    if rows is not None:
        tables.write(rows, tables.table(dataset, holders, clients))
        print(f"written: {rows}", file=sys.stderr)
    if damaged and not skips:
        raise typer.Exit(2)


def print_split(dataset: Any, mix: Any, rule: str, warnings: Sequence[str], damaged: Sequence[str] | None, skips: bool) -> None:
    """Print a split with warnings and damaged images. `damaged` is None if no image was decoded; `skips`: a run drops them."""
    from flora_hpc.records.views import count
    from flora_hpc.report import split

    console = Console(highlight=False)
    validation = f"{len(dataset.validation):,} validation and " if len(dataset.validation) else ""
    others = f"{validation}{len(dataset.test):,} test images, which no client holds"
    images = f"{dataset.name}, {len(dataset.train):,} training images; {others}"
    facts = {"data": images, "partition": rule} | ({} if damaged is not None else {"checked": "no; --check decodes every image"})
    console.print(split.terminal(mix, console.width, facts))
    lines = [(f"left out: {count(number, 'file')}: {reason}", "yellow") for reason, number in dataset.left_out.items()]
    lines += [(f"warning: {sentence}", "yellow") for sentence in warnings]
    lines += [(f"cannot be decoded: {text}", "red") for text in damaged or []]
    for line, style in lines:
        console.print(line, style=style, markup=False, soft_wrap=True)
    if damaged is not None:
        sentence = f"all {len(dataset.images):,} images can be decoded"
        if damaged:
            sentence = f"{len(damaged):,} of {len(dataset.images):,} images cannot be decoded"
            sentence += "" if skips else "; a run refuses them: mend or remove them, or set data.damaged: skip to leave them out"
        console.print(sentence, soft_wrap=True)


def inspect_all(dataset: Any) -> Any:
    """Decode and inspect every image, with a progress bar: a `look.Inspection`."""
    from flora_hpc.data import look

    images, bar, inspection = dataset.images, Bar("decoding"), look.Inspection()
    try:
        for start in range(0, len(images), BATCH):
            rows = range(start, min(start + BATCH, len(images)))
            inspection += look.inspect(images, rows, len(os.sched_getaffinity(0)))
            bar(rows.stop, len(images))
    finally:
        bar.close()
    return inspection


def list_(
    root: Annotated[
        Path | None, typer.Option(help="as data.root; $FLORA_HPC_DATA or ~/.cache/flora_hpc/data by default", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets that have a name: which are here, which are not, and how to get them."""
    from flora_hpc import plugins
    from flora_hpc.data import fetch as fetching
    from flora_hpc.data.datasets._catalog import CATALOG

    rows = [(card, fetching.missing(name, root)) for name, card in sorted(CATALOG.items())]
    if as_json:
        entries = {card.name: {"here": missing is None, "images": card.num_images, "missing": missing} for card, missing in rows}
        json.dump(entries, sys.stdout)
        print()
        return
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "name", "images", "classes", "download"):
        table.add_column(heading, justify="right" if heading in ("images", "classes", "download") else "left", no_wrap=True)
    table.add_column("what it is", no_wrap=True, overflow="ellipsis", max_width=max(20, console.width - 58))
    for card, missing in rows:
        state = "[green]here[/]" if missing is None else "fetch" if card.archives else "[yellow]by hand[/]"
        table.add_row(state, card.name, f"{card.num_images:,}", f"{card.num_classes}", decimal(card.download_bytes), card.about)
    console.print(table)
    for card, missing in rows:
        if missing is not None and not card.archives:
            console.print(missing, style="yellow", markup=False, soft_wrap=True)
    console.print("fetch: `flora-hpc data fetch NAME`, where there is a network; `flora-hpc list datasets` says what each is")
    console.print(f"nothing to fetch for: {', '.join(name for name in plugins.members('datasets') if name not in CATALOG)}")


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="one of `flora-hpc data list`")],
    root: Annotated[
        Path | None, typer.Option(help="as data.root; $FLORA_HPC_DATA or ~/.cache/flora_hpc/data by default", show_default=False)
    ] = None,
) -> None:
    """Download a dataset where there is a network, check it, unpack it. May be interrupted and started again."""
    from flora_hpc.data import fetch as fetching

    bar = Bar(name, "bytes")
    try:
        dataset = fetching.fetch(name, root, lambda done, total: bar(done, total or 0), print)
    finally:
        bar.close()
    images = f"{len(dataset.train):,} training and {len(dataset.test):,} test images"
    print(f"{name}: {images} of {len(dataset.captions):,} classes are here")


def pack(
    what: Annotated[str, typer.Argument(metavar="DATA", help="a dataset's name, or a configuration whose data is meant")],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="the file to write")],
    overrides: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="such as data.root=...; may be repeated")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="write over a file that is there")] = False,
) -> None:
    """Write a dataset into one HDF5 file, instead of 100,000 small ones; every image is decoded once and checked."""
    options = configfile.load_data(what, overrides)

    from flora_hpc import plugins
    from flora_hpc.data import pack as packing

    dataset = plugins.member("datasets", options.name).build(options)
    bar = Bar(f"packing {dataset.name}")
    try:
        with stop.exiting():  # removes the unfinished file
            packed = packing.pack(
                dataset,
                out,
                options.damaged,  # type: ignore[attr-defined]
                bar,
                replace=replace,
                num_threads=len(os.sched_getaffinity(0)),
            )
    finally:
        bar.close()
    for text in packed.damaged:
        print(f"left out: {text}")
    for name in packed.dropped_columns:
        print(f"note: column {name} is neither numbers nor texts, and is not in the file")
    images = f"{packed.num_train:,} training and {packed.num_test:,} test images"
    print(f"{out}: {images} as {packed.encoding}, {decimal(out.stat().st_size)}")
    print(f"use it: -s data.name=hdf5 -s {shlex.quote(f'data.path={out}')}")


app.command("list")(list_)
for command in (fetch, pack, inspect, embed, cache):
    app.command()(command)

"""`flora-hpc export`: the trained adapter of a run, as files that other programs load."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from safetensors import SafetensorError

from flora_hpc import configfile, extras, rundir
from flora_hpc.cli._adapter import FEDAVG, note_round
from flora_hpc.cli._args import Plugins, Run, use_plugins
from flora_hpc.comm import launch, stop
from flora_hpc.errors import UserError, reason
from flora_hpc.owner import claim, living
from flora_hpc.records import hdf5file, split

LONGEST_SECONDS = 86_400.0  # of an export: another host cannot see whether its process lives


class Form(StrEnum):
    """The formats of an export."""

    peft = "peft"
    open_clip = "open_clip"
    transformers = "transformers"


MERGE = "without flora-hpc, take --to open_clip or --to transformers --merged, which hold whole weights"
LOAD = {  # how to load the result from {out}
    "open_clip": "load it with open_clip.create_model('local-dir:{out}')",
    "transformers --merged": (
        "load it with transformers.CLIPModel.from_pretrained('{out}') and "
        "transformers.CLIPProcessor.from_pretrained('{out}', backend='pil')"
    ),
    "transformers": (
        "it is the adapter alone; load it with peft.PeftModel.from_pretrained(clip_model, '{out}') on a CLIPModel with the weights "
        "that the run started from (--merged writes a whole CLIPModel)"
    ),
    "peft": (
        "it is the adapter alone; load it with peft.PeftModel.from_pretrained(flora_hpc.clip.attention.unfuse(open_clip_model), "
        f"'{{out}}'); {MERGE}"
    ),
}


def export(
    run: Run,
    to: Annotated[
        Form,
        typer.Option(
            help="open_clip: merged into whole weights; transformers: LoRA for CLIPModel; peft: the LoRA adapter as it is"
        ),
    ],
    merged: Annotated[bool, typer.Option("--merged", help="with transformers: a whole CLIPModel with its processor")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="new directory; by default export-<to> in the run's", show_default=False)
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write what a finished run trained for other programs: open_clip, transformers or PEFT."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"export needs one process, but the launcher started {size}; start it alone")
    if merged and to == Form.peft:
        raise UserError(f"--merged: PEFT's files hold the adapter alone; {MERGE}")
    form = "transformers --merged" if merged and to == Form.transformers else str(to)
    folder = hdf5file.locate(run).parent
    out = out or folder / f"export-{form.replace(' --', '-')}"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; choose another directory, or remove this one")
    use_plugins(plugin)
    rundir.check_plugins(folder, needs_algorithm=False)
    if to == Form.transformers:
        extras.need(f"--to {form}", "transformers" if merged else "peft")
    note_round(run)
    save(form, out, folder)
    print(f"wrote {out}; {LOAD[form].format(out=out)}")


def save(form: str, out: Path, folder: Path) -> None:
    """Write the adapter of the run in `folder` to `out` in one of the forms of LOAD."""
    config, _ = configfile.load(folder / "config.yaml", FEDAVG)

    import torch  # seconds of imports

    from flora_hpc.clip import adapters, export
    from flora_hpc.clip.load import load

    _, tensors, alpha, _ = adapters.read(folder / "adapter")
    method = config.method.name
    if form in ("peft", "transformers"):
        export.low_rank(alpha)
    if form == "peft" and not adapters.is_former(tensors):
        return write(out, lambda new: shutil.copytree(folder / "adapter", new))
    if form.startswith("transformers"):
        clip = load(config.model, config.seed, torch.device("meta"))  # before the weights, which take time
        export.check_transformers(clip.model)
    if form != "transformers":
        clip = load(config.model, config.seed, torch.device("cpu"))
    if form == "peft":
        current = export.fitting(clip.model, tensors, alpha)
        return write(out, lambda new: adapters.save(new, clip.model, current, alpha, clip.name, method))
    if form == "transformers":
        lora, state = export.transformers_lora(clip.model, tensors, alpha)
        return write(out, lambda new: export.save_transformers(new, clip, lora, state))
    state = export.merged(clip.model, tensors, alpha)
    if form == "open_clip":
        return write(out, lambda new: export.save_open_clip(new, clip, config.model, state, method))
    write(out, lambda new: export.save_clip_model(new, clip, state, method))
    names = class_names(hdf5file.locate(folder))
    if unlike := export.texts_with_other_tokens(out, clip, names):
        print(
            f"warning: a CLIPProcessor gives other tokens than the run for {len(unlike):,} of {len(names):,} class names, such as "
            f"'{unlike[0]}', since it does not clean captions as open_clip does; {out / 'README.md'} says how to clean them",
            file=sys.stderr,
        )
    return None


def class_names(path: Path) -> Sequence[str]:
    """The names of a run's classes; empty when run.h5 has none or cannot be read, since an export needs only the adapter."""
    with suppress(UserError):
        classes_of_clients = split.read(path)
        return classes_of_clients.classes if classes_of_clients else ()
    return ()


def write(out: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a new directory, and rename it to `out` when it is complete. Raises UserError when it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(out.parent)
        with stop.exiting(), TemporaryDirectory(prefix=".export-", dir=out.parent) as beside:
            claim.path(Path(beside), 1).write_text(json.dumps(asdict(living.this_process())))
            new = Path(beside) / "new"
            fill(new)
            for file in new.iterdir():
                file.chmod(new.stat().st_mode & 0o666)  # safetensors writes files that only their owner can read
            new.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written ({reason(error)}); choose a directory that can") from None


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished directories of killed exports from `folder`."""
    for beside in folder.glob(".export-*"):
        with suppress(OSError):  # without the file of an owner, `beside` is no export
            age = time.time() - beside.stat().st_mtime
            if living.lives(claim.read(beside, 1), 0.0) is False or age > LONGEST_SECONDS:
                shutil.rmtree(beside)

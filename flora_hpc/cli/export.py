"""`flora-hpc export`: what a run trained, as files that other programs load."""

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from safetensors import SafetensorError

from flora_hpc import configfile
from flora_hpc.cli._adapter import note_round
from flora_hpc.cli._args import Run
from flora_hpc.comm import launch
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file


class Form(StrEnum):
    """What can be written."""

    peft = "peft"
    open_clip = "open_clip"
    transformers = "transformers"


LOAD = {  # where the result is {out}
    Form.peft: "peft.PeftModel.from_pretrained(flora_hpc.clip.attention.split(open_clip_model), '{out}')",
    Form.open_clip: "open_clip.create_model('local-dir:{out}')",
    Form.transformers: "peft.PeftModel.from_pretrained(clip_model, '{out}')",
}


def export(
    run: Run,
    to: Annotated[
        Form,
        typer.Option(
            help="peft: the LoRA adapter as it is; open_clip: merged into whole weights; transformers: LoRA for CLIPModel"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="new directory; by default export-<to> in the run's", show_default=False)
    ] = None,
) -> None:
    """Write what a finished run trained for other programs: PEFT, open_clip or transformers."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"export needs one process, but the launcher started {size}; start it alone")
    folder = hdf5file.locate(run).parent
    out = out or folder / f"export-{to}"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; choose another directory, or remove this one")
    config, _ = configfile.load(folder / "config.yaml")
    note_round(run)

    import torch  # seconds of imports

    from flora_hpc.clip import adapters, export
    from flora_hpc.clip.load import load

    _, tensors, alpha, _ = adapters.read(folder / "adapter")
    if to == Form.peft:
        export.low_rank(alpha)
        write(out, lambda new: shutil.copytree(folder / "adapter", new))
    elif to == Form.open_clip:
        clip = load(config.model, config.seed, torch.device("cpu"))
        state = export.merged(clip.model, tensors, alpha)
        write(out, lambda new: export.save_open_clip(new, clip, config.model, state, config.method.name))
    else:
        clip = load(config.model, config.seed, torch.device("meta"))
        lora, state = export.transformers_lora(clip.model, tensors, alpha)
        write(out, lambda new: export.save_transformers(new, clip, lora, state))
    print(f"wrote {out}; load it with {LOAD[to].format(out=out)}")


def write(out: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a new directory, which becomes `out` when it is whole. Raises UserError when that cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=out.parent) as beside:
            new = Path(beside) / "new"
            fill(new)
            for file in new.iterdir():
                file.chmod(new.stat().st_mode & 0o666)  # safetensors lets nobody else read its files
            new.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written ({error}); choose a directory that can") from None

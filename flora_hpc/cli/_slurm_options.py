"""The options of `flora-hpc slurm`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Mpi(StrEnum):
    """How srun's tasks connect to each other."""

    auto = "auto"
    pmix = "pmix"
    pmi2 = "pmi2"
    none = "none"


Config = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", help="YAML file, or the name of a bundled one such as quickstart", show_default=False),
]
Study = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="play the study in DIR, which `flora-hpc study ... --out DIR --prepare` wrote", show_default=False
    ),
]
Shards = Annotated[
    int, typer.Option(metavar="N", help="with --study: a job array of N such jobs, each of which plays every Nth point")
]
RanksPerRun = Annotated[
    int | None, typer.Option(metavar="N", help="with --study: ranks that play a point together", show_default=False)
]
Nodes = Annotated[int, typer.Option(help="number of nodes")]
GpusPerNode = Annotated[int, typer.Option(help="GPUs of each node")]
Time = Annotated[
    str,
    typer.Option(metavar="H:MM:SS|auto", help="time limit, as for sbatch; auto: a quarter above what predict says, with --from"),
]
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from", metavar="RUN", help="with --time auto: a run on such nodes, as for predict; may be repeated", show_default=False
    ),
]
NtasksPerNode = Annotated[
    int | None, typer.Option(metavar="N", help="ranks on each node; by default one for each GPU, or one", show_default=False)
]
CpusPerTask = Annotated[int, typer.Option(metavar="N", help="cores of each rank")]
Partition = Annotated[str | None, typer.Option(metavar="P", help="partition of the cluster", show_default=False)]
Account = Annotated[str | None, typer.Option(metavar="A", help="account to charge", show_default=False)]
Array = Annotated[
    str | None,
    typer.Option(
        metavar="[KEY=]VALUES",
        help="a job array over the values of a key, such as client.lr=1e-4,1e-3; numbers alone are numbers of clients",
        show_default=False,
    ),
]
Container = Annotated[str | None, typer.Option(metavar="IMAGE", help="run inside this image, with Apptainer", show_default=False)]
MpiOption = Annotated[Mpi, typer.Option(help="auto looks at the MPI library here and at comm.backend")]
CpuBind = Annotated[str | None, typer.Option(metavar="HOW", help="srun --cpu-bind, such as cores", show_default=False)]
Setup = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="lines of bash that go before srun, such as module load ... or . .venv/bin/activate",
        show_default=False,
    ),
]
Sbatch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="another option of sbatch, such as qos=high or exclusive; may be repeated", show_default=False
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="run directory; by default runs/<config name>", show_default=False)]
Submit = Annotated[bool, typer.Option("--submit", help="hand the script to sbatch instead of printing it")]

"""Configurations that come with the package. Each has a name, which every command takes in place of a file."""

from pathlib import Path

from flora_hpc.errors import did_you_mean

FOLDER = Path(__file__).parent / "configs"
SETTING = "setting"  # the file of a folder that the other files of the folder are built on; the folder's name means this file
STARTS = {  # what `flora-hpc init` copies -> the next command, for the copy
    "quickstart": "flora-hpc run {}",
    "paper": "flora-hpc data fetch cifar10, where a network is, and then flora-hpc run {}",
    "photos": "flora-hpc data inspect {}, with your images in the folder photos",
    "study": "flora-hpc study {} --out studies/first",
    "cluster": "flora-hpc slurm {} --nodes 4 --time 0:30:00 > job.sh",
}


def names() -> dict[str, Path]:
    """The file of each name: `quickstart`, `paper/dirichlet`, and `paper` for paper/setting.yaml."""
    paths = {path.relative_to(FOLDER).with_suffix(""): path for path in sorted(FOLDER.rglob("*.yaml"))}
    return {str(path.parent if path.name == SETTING else path): file for path, file in paths.items()}


def located(path: Path) -> Path:
    """The bundled file when `path` is a bundled name and no file; otherwise the path itself."""
    return path if path.is_file() else names().get(str(path), path)


def cure(path: Path, nearby: list[str]) -> str:
    """The end of a sentence about a missing configuration: the bundled one that is meant, a similar name, or all."""
    inside = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    name = str(inside.relative_to("configs") if inside.is_relative_to("configs") else inside)
    if name in names() and path.suffix:
        copy = f", and `flora-hpc init {name}` writes a copy that you can change" if name in STARTS else ""
        return f"; it comes with flora_hpc under the name {name}: give {name} instead of the path{copy}"
    starts = f"; give the path of one, a name that comes with flora_hpc ({', '.join(names())}), or write one with `flora-hpc init`"
    return did_you_mean(path.name, nearby if path.suffix else [*nearby, *names()]) or starts

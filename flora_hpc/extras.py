"""Packages that only some commands need: the error for a missing package gives the command that installs it."""

import importlib.util

from flora_hpc.errors import UserError

EXTRAS = {  # import name -> the extra of flora-hpc that installs the package
    "jinja2": "report",
    "matplotlib": "report",
    "mlflow": "mlflow",
    "mpi4py": "mpich",
    "pandas": "study",
    "peft": "peft",
    "pyarrow": "parquet",
    "scipy": "mat",
    "tensorboard": "tensorboard",
    "transformers": "peft",
    "wandb": "wandb",
}
NAMES = {"jinja2": "Jinja2"}  # import name -> the package's usual name


def need(what: str, *packages: str, otherwise: str = "") -> None:
    """Raise UserError unless all `packages`, which `what` needs, are installed. No package is imported.

    `otherwise` is the end of the sentence, with another cure.
    """
    missing = [package for package in packages if not installed(package)]
    if missing:
        names = " and ".join(NAMES.get(package, package) for package in missing)
        extra = EXTRAS.get(missing[0])
        install = f"'flora-hpc[{extra}]'" if extra else missing[0]
        are = "are" if len(missing) > 1 else "is"
        raise UserError(f"{what} needs {names}, which {are} not installed: pip install {install}{otherwise}")


def installed(package: str) -> bool:
    """Whether a package can be imported. A mere folder with its name, such as trackers leave behind, does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None

"""`flora-hpc` in which rank 1 makes a mistake when it plays alone, of which other parts of the world know nothing."""

from typing import Any

from flora_hpc import building
from flora_hpc.cli import main
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError

make_setup = building.make_setup


def failing(config: Config, *words: Any) -> Any:
    if config.cohort.size == 1 and launch.detect().rank == 1:
        raise UserError("a file is missing here")
    return make_setup(config, *words)


building.make_setup = failing
main()

"""Options of few-shot partitioners: a number of examples of a class, either split or drawn."""

from typing import Self

from pydantic import Field, model_validator

from flora_hpc.data.holdings import PartitionOptions
from flora_hpc.errors import UserError


class ShotsOptions(PartitionOptions):
    """The number of examples of a class that a client gets."""

    shots: int | None = Field(None, ge=1, description="examples per client of each of its classes; the others are nobody's")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.shots is None) == (self.examples_per_client is None):
            raise ValueError(
                "partition.shots: give either partition.shots, to split the images, "
                "or partition.examples_per_client, to let each client draw its own"
            )
        return self


def refuse(what: str, most_shots: int, most_clients: int) -> UserError:
    """The error for `what`, with the largest possible values; 0 if lowering that option cannot suffice."""
    largest = {"it": most_shots, "partition.num_clients": most_clients}
    cures = [f"{key} to {most:,} at most" for key, most in largest.items() if most > 0]
    return UserError(f"partition.shots: {what}; lower {' or '.join(cures) or 'both it and partition.num_clients'}")

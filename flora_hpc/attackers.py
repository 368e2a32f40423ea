"""Who attacks, and what attackers train and send. Who it is depends on seed and client alone, in all rounds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import plugins, seeds
from flora_hpc.attacks._attack import Attack, AttackOptions
from flora_hpc.errors import UserError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Attackers:
    """The attackers of a run."""

    attack: Attack
    name: str  # of the attack
    seed: int
    mask: Bools  # (num_registered,)

    def labels(self, clients: Ints, num_classes: int) -> torch.Tensor | None:
        """The label that each client trains with for each class, (num_clients, num_classes) int64; None without attackers."""
        if self.attack.labels is None or not self.mask[clients].any():
            return None
        classes = torch.arange(num_classes).repeat(len(clients), 1)
        mask = torch.from_numpy(self.mask[clients])[:, None]
        return torch.where(mask, self.attack.labels(classes, num_classes), classes)

    def poisoned(self, clients: Ints, examples: Ints, num_images: int) -> Ints:
        """The rows of images that clients train with, from `examples` (num_steps, num_clients, batch): some of them triggered.

        Row num_images + i is image i with the trigger. Which images an attacker triggers depends on seed and image alone.
        """
        trigger, mask = self.attack.trigger, self.mask[clients]
        if trigger is None or not mask.any():
            return examples
        result, own = examples.copy(), examples[:, mask]
        words = seeds.words(self.seed, "triggered images", of=own.reshape(-1), count=1)[:, 0].reshape(own.shape)
        result[:, mask] = np.where(words / 2.0**64 < trigger.poisoned, own + num_images, own)
        return result

    def alone(self, number: int, clients: Ints, updates: torch.Tensor) -> torch.Tensor:
        """The updates (num_clients, num_shared) that `clients` send in round `number`, from those that they have trained."""
        if self.attack.alone is None or not self.mask[clients].any():
            return updates
        sent = updates.clone()
        for i in np.flatnonzero(self.mask[clients]):
            sent[i] = self.attack.alone(updates[i], seeds.generator(self.seed, "attack", number, int(clients[i])))
        return sent

    def against(self, clients: Ints, rows: torch.Tensor) -> None:
        """Replace some columns of attackers' updates, in rows (num_clients, width) float32 of all clients of a round."""
        mask = torch.from_numpy(self.mask[clients])
        if self.attack.against is not None and mask.any() and not mask.all():
            rows[mask] = self.attack.against(rows[~mask].double(), int(mask.sum())).float()


def draw(options: AttackOptions, seed: int, num_registered: int) -> Attackers:
    """Draw the attackers. Raises UserError where there would be none."""
    count = int(options.fraction * num_registered + 1e-9)
    if not count:
        raise UserError(
            f"attack.fraction: {options.fraction:g} of {num_registered:,} registered clients is less than one attacker; raise it, "
            "or leave attack out"
        )
    clients = np.arange(num_registered)
    words = seeds.words(seed, "attackers", of=clients, count=1)[:, 0]
    mask = np.zeros(num_registered, bool)
    mask[np.argsort(words, kind="stable")[:count]] = True
    return Attackers(plugins.build("attacks", options, Attack), options.name, seed, mask)

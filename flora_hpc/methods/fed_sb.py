"""Fed-SB: a small matrix between two frozen factors is trained and sent (Singhal et al., 2025; LoRA-SB, Ponkshe et al., 2024).

y = W x + alpha * B R A x. Clients train R (rank, rank) alone. B (out, rank) and A (rank, in) are the same for all clients and stay
as they began, so the mean of the products B R A is the product of the means. Any algorithm acts on R; `fedavg` is the paper's.

The start approximates the first step of training all weights of these layers (arXiv 2411.19557, 2502.15436):

    G = mean gradient of a layer's weight     some clients of round 1, each on the first batch of its training
    D = the optimizer's first step along G    client.lr * G / (|G| + eps) for Adam, client.lr * G for SGD, both downwards
    U S V = D, cut to `rank` singular values
    B = U, R = S / alpha, A = V               so that alpha * B R A is the best approximation of D of this rank

What differs from the papers: their D is client.lr * sign G, the limit of Adam's for a small eps. In their code, G is computed on
a sample of all clients' data in one place. Here clients compute it, and the bytes that they send for it are counted.
"""

from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from flora_hpc.clip.lora import MIDDLE, SHARED
from flora_hpc.methods import _lora
from flora_hpc.methods._method import FirstGradient, Method, Setting, Tensors
from flora_hpc.svd import truncated_svd

CHANGE = ".change"  # end of the names of the probe's tensors


class Options(_lora.LayerOptions):
    """Size, place and start of the adapters."""

    rank: int = Field(8, ge=1, description="rows and columns of R")
    alpha: float = Field(1.0, gt=0, allow_inf_nan=False, description="scale of B R A x; R starts at the singular values / alpha")
    first_clients: int = Field(
        32, ge=1, description="clients of round 1, at most, whose mean gradient on one batch each decides A, B and the start of R"
    )


def build(options: Options, setting: Setting) -> Method:
    layers = _lora.find_layers(setting.clip.model, options.targets, setting.clip.name)
    factors = _lora.shapes_of(layers, {"lora": (options.rank, "method.rank")})
    shapes: dict[str, tuple[int, ...]] = {}
    for path in layers:
        up, middle, down = f"{path}{SHARED}B", f"{path}{MIDDLE}", f"{path}{SHARED}A"
        shapes |= {down: factors[down], middle: (options.rank, options.rank), up: factors[up]}

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Random A and B, and R = 0: what there is before the first gradient."""
        return {
            name: torch.zeros(shape)
            if name.endswith(MIDDLE)
            else torch.from_numpy(rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(options.rank)))
            for name, shape in shapes.items()
        }

    def tensors(path: str, step: torch.Tensor) -> Tensors:
        left, values, right = truncated_svd(step, options.rank)
        return {f"{path}{SHARED}A": right, f"{path}{MIDDLE}": torch.diag(values / options.alpha), f"{path}{SHARED}B": left}

    plain = options.model_copy(update={"alpha": 1.0, "dropout": 0.0})
    changes = {f"{path}{CHANGE}": (layer.out_features, layer.in_features) for path, layer in layers.items()}
    probe = _lora.on_layers(plain, setting, layers, changes, lambda rng: {}, as_factors)
    method = _lora.on_layers(options, setting, layers, shapes, init)
    return replace(
        method,
        constants=frozenset(factors),
        first_gradient=FirstGradient(replace(probe, paired=setting.paired), options.first_clients, tensors),
    )


def as_factors(changes: Tensors) -> Tensors:
    """Changes D (num_clients, out, in) of weights as products of two factors, D I or I D, the identity on the shorter side."""
    factors: dict[str, torch.Tensor] = {}
    for name, change in changes.items():
        path, (num_clients, out, width) = name.removesuffix(CHANGE), change.shape
        identity = torch.eye(min(out, width), dtype=change.dtype, device=change.device).repeat(num_clients, 1, 1)
        down, up = (identity, change) if width <= out else (change, identity)
        factors |= {f"{path}{SHARED}A": down, f"{path}{SHARED}B": up}
    return factors

"""The experiment as one tree of frozen options, `Config`; `configfile` reads it from YAML."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from flora_hpc import plugins, yamltext
from flora_hpc.errors import did_you_mean
from flora_hpc.filekinds import ADDRESS, WINDOWS
from flora_hpc.plugins import BaseOptions
from flora_hpc.strict import StrictModel, check_text

PARTS = ("sharing", "local", "transform", "combine", "server")  # of an algorithm; optional sections that name another algorithm's
OPTIONAL = (*PARTS, "attack")  # sections that name a member of a family, and may be left out
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(StrictModel):
    """A branch of the configuration."""


def _folder(value: Any) -> Any:
    if value in ("auto", "none") or not isinstance(value, str):
        return value
    check_text(value, is_path=True)
    if WINDOWS.match(value):
        raise PydanticCustomError("flora_hpc", "is a path of Windows; write it as this system has it")
    if ADDRESS.match(value):
        raise PydanticCustomError("flora_hpc", "is an address; give a path of this system: download what lies there first")
    return str(Path(value).expanduser().absolute())


def _absolute(value: Any) -> Any:
    """The absolute path of a path, for the run's config.yaml; other texts unchanged."""
    if not isinstance(value, str):
        return value
    looks_like_path = "/" in value or value.startswith(("~", ".")) or WINDOWS.match(value)
    return _folder(value) if looks_like_path or os.path.isfile(value) else value  # noqa: PTH113


class ModelConfig(Section):
    """The CLIP model that is fine-tuned."""

    name: str = Field("flora-tiny", description="'flora-tiny' (bundled) or any name of open_clip.list_models()")
    pretrained: Annotated[str | None, BeforeValidator(_absolute)] = Field(
        None, description="open_clip tag, weights file, open_clip directory, or 'none' for seeded random weights"
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="fp32; bf16 for products with frozen weights, adapters stay fp32; tf32 for all products, on NVIDIA GPUs"
    )


class FeaturesConfig(Section):
    """The store of image features, so that later runs need not compute them again."""

    store: Annotated[str, BeforeValidator(_folder)] = Field(
        "auto", description="a folder that all nodes share; auto: $FLORA_HPC_CACHE, or ~/.cache/flora_hpc; none: keep nothing"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="number format of stored features; bf16 halves their size")
    compute: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="number format of the image tower's products; bf16 is faster where the processor or GPU multiplies in it",
    )


class CohortConfig(Section):
    """The participants of a round, as a share or a number of clients, and their ranks."""

    fraction: float | None = Field(None, gt=0, le=1, description="share of the clients, 0..1; 1.0 when size is not given either")
    size: int | None = Field(None, ge=1, description="number of clients")
    assignment: Literal["static", "balanced", "dynamic"] = Field(
        "balanced",
        description="clients go to ranks in turn (static), by their cost (balanced), or in groups to idle ranks (dynamic); "
        "the results are the same",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "CohortConfig":
        if self.fraction is not None and self.size is not None:
            raise ValueError("give cohort.fraction or cohort.size, not both")
        return self

    def num_clients(self, registered: int) -> int:
        """The number of participants of a round, out of `registered` clients; at least one."""
        return self.size if self.size is not None else max(1, round((self.fraction or 1.0) * registered))


class ClientConfig(Section):
    """The local training of one client in one round. The defaults are those of the FLoRA paper's code."""

    epochs: int = Field(1, ge=1, description="passes over the client's examples in a round")
    batch_size: int = Field(128, ge=1, description="examples per step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="adam (the paper's), adamw or sgd, as in torch.optim")
    lr: Positive = Field(5e-5, description="learning rate")
    loss: Literal["contrastive", "classification"] = Field("contrastive", description="contrastive (the paper's) or classification")
    weight_decay: float = Field(
        0.2, ge=0, allow_inf_nan=False, description="L2 penalty, added to the gradient; adamw: decoupled from it"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.98), description="adam and adamw: decay rates; sgd ignores them")
    eps: Positive = Field(1e-6, description="adam and adamw: epsilon; sgd ignores it")
    momentum: Decay = Field(0.0, description="sgd: share of the last step that is kept; adam and adamw refuse it")
    shuffle: bool = Field(True, description="a new order of the examples in every epoch")
    optimizer_state: Literal["reset", "keep"] = Field(
        "reset", description="start the optimizer afresh in every round, or keep each client's state"
    )
    first_step: Literal["auto", "each", "jacobian"] = Field(
        "auto",
        description="how clients, which all start from one adapter, get their first gradient: each by a backward pass, or by one "
        "Jacobian for all and a product for each, which pays for hundreds of clients; auto: the cheaper way",
    )
    group_size: int | None = Field(
        None, ge=1, description="clients trained in one batch of tensors at most; chosen when not given, and changes no bit on CPUs"
    )

    @model_validator(mode="after")
    def _momentum_is_used(self) -> "ClientConfig":
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"client.momentum: {self.momentum} is for sgd, and {self.optimizer} has betas; "
                "set client.optimizer: sgd, or leave it out"
            )
        return self


class EvaluateConfig(Section):
    """When and how the test accuracy is measured."""

    every: int = Field(1, ge=1, description="rounds between evaluations; rounds 0 and the last are always evaluated")
    overlap: bool = Field(False, description="test a round's adapter during the next round, on ranks that would otherwise wait")
    per_client: bool = Field(False, description="also test each client on its own mix of classes: mean, spread and worst client")
    personal: bool = Field(
        False,
        description="also test each participant's own model on its own mix of classes, a test for each; overlap refuses it",
    )
    per_rank: bool = Field(
        False,
        description="also test the adapter cut to each rank of the round's clients, a test for each rank",
    )
    cross_term: bool = Field(
        False,
        description="also measure how far the mean of A times the mean of B is from the mean of B A, in every round, of LoRA",
    )
    fine_tune_epochs: int = Field(
        0,
        ge=0,
        description="epochs that each participant of the last round trains from the final adapter before its personal test; "
        "changes no adapter",
    )

    @model_validator(mode="after")
    def _tests_fit(self) -> "EvaluateConfig":
        if self.fine_tune_epochs and not self.personal:
            raise ValueError(
                f"evaluate.fine_tune_epochs: {self.fine_tune_epochs} epochs train models that only evaluate.personal tests; "
                "set evaluate.personal: true, or leave it out"
            )
        if self.personal and self.overlap:
            raise ValueError(
                "evaluate.personal: tests at the end of a round, and evaluate.overlap in the next one; leave one of the two out"
            )
        return self


def _backend(value: Any) -> Any:
    names = [*plugins.members("backends"), "auto"]
    if value not in names:
        raise ValueError(f"no backend '{value}'{did_you_mean(str(value), names)} ({', '.join(sorted(names))})")
    return value


class CommConfig(Section):
    """How ranks communicate, and on which device they compute."""

    backend: Annotated[str, BeforeValidator(_backend)] = Field("auto", description="auto, serial, mpi, gloo or nccl")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU when there is one")
    timeout_seconds: Positive = Field(
        1800.0, le=1e8, description="a collective that takes longer ends the job, naming the missing ranks"
    )


def _clients(value: Any) -> Any:
    words = str(value).split()
    if value not in ("all", "none") and not (len(words) == 2 and words[0] == "sample" and words[1].isdecimal() and int(words[1])):
        raise ValueError(f"'{value}' is none of: all, none, or sample N, such as sample 1000")
    return value


class RecordsConfig(Section):
    """What run.h5 keeps of a round beside its sums, which are always those of all clients."""

    clients: Annotated[str, BeforeValidator(_clients)] = Field(
        "all",
        description="rows of /clients: all; none; or 'sample 1000', so many clients of each round, drawn from the seed",
    )

    @property
    def most_clients(self) -> int | None:
        """Clients of a round that have a row, at most; None for all."""
        return {"all": None, "none": 0}[self.clients] if self.clients in ("all", "none") else int(self.clients.split()[1])


class CheckpointConfig(Section):
    """When a run saves checkpoints to resume from, and what a signal to stop does."""

    every: int = Field(1, ge=0, description="rounds between checkpoints; 0: only when a signal stops the run")
    on_signal: Literal["finish", "abandon"] = Field(
        "finish", description="what SIGUSR1 or SIGTERM does with the current round: finish it, or throw it away"
    )
    keep: bool = Field(
        True, description="keep the last checkpoint of a finished run, so that --resume can give it more rounds (needs every > 0)"
    )

    @property
    def keeps_last(self) -> bool:
        """Whether a finished run has a checkpoint of its last round."""
        return self.keep and self.every > 0


def _part(what: str) -> Any:
    """The field of an optional section that names the algorithm whose part a run takes, and this algorithm's options."""
    return Field(None, description=f"{what}: an algorithm's name and options, instead of this part of `algorithm`")


class Config(Section):
    """The whole experiment. Only `experiment`, `loop`, `jobs` and `cli` use it; other modules get their own section."""

    seed: int = Field(0, ge=0, lt=2**63, description="decides every random number of the run")
    rounds: int = Field(50, ge=0, description="rounds of training after round 0, which only evaluates")
    model: ModelConfig = ModelConfig()
    method: SerializeAsAny[BaseOptions]
    data: SerializeAsAny[BaseOptions]
    features: FeaturesConfig = FeaturesConfig()
    partition: SerializeAsAny[BaseOptions]
    cohort: CohortConfig = CohortConfig()
    client: ClientConfig = ClientConfig()
    algorithm: SerializeAsAny[BaseOptions]
    sharing: SerializeAsAny[BaseOptions] | None = _part("which tensors clients send, keep for themselves, or do not train")
    local: SerializeAsAny[BaseOptions] | None = _part("what a client does beyond the gradient of its loss")
    transform: SerializeAsAny[BaseOptions] | None = _part("what happens to updates on their way, such as encoding")
    combine: SerializeAsAny[BaseOptions] | None = _part("weights of clients, and how updates become one direction")
    server: SerializeAsAny[BaseOptions] | None = _part("what is done with the direction, and what else is sent to clients")
    attack: SerializeAsAny[BaseOptions] | None = Field(
        None, description="what some clients do to harm the others, and how many of them: an attack's name and options"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    records: RecordsConfig = RecordsConfig()
    comm: CommConfig = CommConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> "Config":
        registered: int | None = getattr(self.partition, "num_clients", None)
        if registered is None:  # a file lists the clients, or the partition has mistakes and was replaced by a stand-in
            return self
        if (fault := self.cohort_fault(registered)) is not None:
            raise ValueError(fault)
        return self

    def cohort_fault(self, registered: int) -> str | None:
        """Why no round is possible with so many registered clients, in one sentence; None when rounds are possible."""
        if self.cohort.size is not None and self.cohort.size > registered:
            cure = " or raise partition.num_clients" if getattr(self.partition, "num_clients", None) is not None else ""
            return f"cohort.size: {self.cohort.size} clients a round, but only {registered} are registered; lower cohort.size{cure}"
        return None

    @property
    def is_fedavg(self) -> bool:
        """Whether the algorithm is FedAvg, with its own parts and its default options, and nobody attacks."""
        fields = type(self.algorithm).model_fields
        defaults = all(getattr(self.algorithm, key) == field.default for key, field in fields.items() if key != "name")
        return self.algorithm.name == "fedavg" and defaults and not any(getattr(self, section) for section in OPTIONAL)

    @property
    def server_images(self) -> int:
        """How many training images only the server has: an option of some combine parts."""
        return int(getattr(self.combine or self.algorithm, "server_images", 0))

    def essence(self) -> "Config":
        """The options that decide the results of a round: all but the machine, the number of ranks and the number of rounds."""
        return self.model_copy(
            update={
                "rounds": 0,
                "comm": CommConfig(),
                "checkpoint": CheckpointConfig(),
                "records": RecordsConfig(),
                "features": self.features.model_copy(update={"store": "auto"}),
                "cohort": self.cohort.model_copy(update={"assignment": "balanced"}),
                "client": self.client.model_copy(update={"group_size": None, "first_step": "auto"}),
            }
        )

    def to_yaml(self) -> str:
        """The resolved configuration with all defaults; loading it gives an equal Config."""
        return yamltext.dump(self.model_dump(mode="json"))

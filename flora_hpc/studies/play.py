"""Play the points of a study: parts of the world take one point after the other, the costliest first.

world of 5 ranks, 2 ranks a run        a counter on rank 0 deals the points
part 0: ranks 0, 1    ->  point 7, then 2, ...      each point is a run in a directory of its own,
part 1: ranks 2, 3, 4 ->  point 4, then 0, ...      with the bits of a lone run;
                                                    model, data and features stay in memory
"""

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flora_hpc import experiment, plugins
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.devices import Neighbours
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.stop import Stop
from flora_hpc.config import Config
from flora_hpc.embed import Progress
from flora_hpc.errors import StoppedError, UserError, reason
from flora_hpc.records import disk, study
from flora_hpc.records.study import FOLDER, Point
from flora_hpc.setup import find_site
from flora_hpc.shared import Shared
from flora_hpc.studies import costs, signac
from flora_hpc.studies.player import Player
from flora_hpc.studies.points import Recipe
from flora_hpc.studies.worlds import Dealer, part_of

OVER = ("finished", "failed")
MOST_NAMED = 5  # points that are known to fail, named before the first one is played


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study outside its recipe."""

    out: Path  # the directory of the study
    ranks_per_run: int = 1
    shard: tuple[int, int] = (0, 1)  # (i, n): of all points, only i, i + n, i + 2n, ...
    stop: Stop = field(default_factory=Stop)
    say: Callable[[str], None] = lambda sentence: None
    progress: Progress = lambda done, total: None  # of making features
    check_ownership: Callable[[], None] = lambda: None


def play(recipe: Recipe, world: Communicator, launch: Launch, options: StudyOptions) -> list[Point]:
    """Play all points of the shard that have not finished, on all ranks of `world`. Returns the points of the shard on rank 0.

    A point that fails is noted, and the others are played. Raises StoppedError, on every rank, when a signal stopped the study.
    """
    statuses = pending(recipe, world, options)
    device = together(world, lambda: devices.pick(launch, recipe.comm))
    neighbours = devices.find_neighbours(world, launch, device)
    room = costs.memory_of_rank(world) if device.type == "cpu" else None
    forecasts = costs.forecast_all([recipe.planned[number] for number in statuses], world, options.ranks_per_run, room)
    cost_of = dict(zip(statuses, forecasts, strict=True))
    bad = [number for number in statuses if cost_of[number].problem or cost_of[number].unfit]
    for number in bad[:MOST_NAMED] if world.rank == 0 else []:
        options.say(f"will fail: {recipe.planned[number].point.name}: {cost_of[number].problem or cost_of[number].unfit}")
    # points that failed before come last, since one of them may end the job; equal costs stay in the order of the grid
    numbers = sorted(statuses, key=lambda number: (statuses[number] == "failed", -cost_of[number].flops))
    shared = Shared()
    make_features(
        [recipe.planned[number].config for number in numbers if number not in bad], world, launch, neighbours, shared, options
    )
    ranks_of = {number: recipe.planned[number].num_ranks or options.ranks_per_run for number in numbers}
    try:
        for num_ranks in sorted(set(ranks_of.values()), reverse=True):
            with part_of(world, num_ranks) as comm:
                player = Player(options.out, comm, launch, neighbours, shared, options.stop, options.check_ownership, options.say)
                dealer = Dealer(world, comm, options.stop, recipe.comm.timeout_seconds)
                deal = dealer.deal([n for n in numbers if ranks_of[n] == num_ranks], f"points of {num_ranks} ranks")
                player.play((recipe.planned[number], cost_of[number]) for number in deal)
            shared = Shared()  # ranks that play together next may have played other points before
            if options.stop.agreed(world):
                break
    except RuntimeError as error:  # of a collective of the world; MPI ends the job instead
        if world.rank == 0:
            finish(recipe, options)
        error.add_note("A rank was lost. What finished is kept, and the same command with --resume plays the rest.")
        raise
    return end(recipe, world, options)


def pending(recipe: Recipe, world: Communicator, options: StudyOptions) -> dict[int, str]:
    """The numbers of the points that have not finished all their rounds, and their status. All ranks get what rank 0 sees."""

    def find() -> dict[int, str]:
        first, step = options.shard
        numbers = range(first, len(recipe.planned), step) if world.rank == 0 else []
        rows = {number: study.newest(options.out, recipe.planned[number].point) for number in numbers}
        rounds = {number: recipe.planned[number].config.rounds for number in numbers}
        return {n: row.status for n, row in rows.items() if row.status != "finished" or row.num_rounds != rounds[n]}

    statuses = json.loads(world.allgather(json.dumps(together(world, find)).encode())[0])
    return {int(number): status for number, status in statuses.items()}


def make_features(
    configs: Sequence[Config], world: Communicator, launch: Launch, neighbours: Neighbours, shared: Shared, options: StudyOptions
) -> None:
    """Make the features that points need, each once, on all ranks together. A point whose images are wrong fails later.

    Not for datasets of the user: a bug in their code would end the whole job here, and later it ends one point.
    """
    done: set[str] = set()
    for config in configs:
        sections = (config.model, config.data, config.features, config.method.name)
        key = json.dumps([part if isinstance(part, str) else part.model_dump(mode="json") for part in sections])
        if key in done or plugins.own_part("datasets", config.data.name) or options.stop.agreed(world):
            continue
        done.add(key)
        with suppress(AgreedError):
            site = find_site(config, world, launch, options.stop, neighbours)
            built = experiment.build_together(config, site, shared)
            experiment.with_inputs(built, site, options.progress, shared)


def end(recipe: Recipe, world: Communicator, options: StudyOptions) -> list[Point]:
    """Write study.h5 and return the points of the shard, on rank 0. Raises StoppedError when a signal left some of them open."""
    points = together(world, lambda: finish(recipe, options) if world.rank == 0 else [])
    num_finished, num_open = sum(p.status == "finished" for p in points), sum(p.status not in OVER for p in points)
    num_finished, num_open = json.loads(world.allgather(json.dumps([num_finished, num_open]).encode())[0])
    if options.stop.agreed(world) and num_open:
        raise StoppedError(
            f"a signal stopped the study when {num_finished} of {num_points(recipe, options)} points had finished; "
            f"`{resuming(recipe, options)}` goes on from there",
            num_finished,
        )
    return points


def resuming(recipe: Recipe, options: StudyOptions) -> str:
    """The command that goes on with a study, for a shell; a launcher stands before it as before."""
    words = ["flora-hpc", "study", "--resume", "--out", str(options.out)]
    words += [word for path in recipe.plugins for word in ("--plugin", path)]
    words += ["--ranks-per-run", str(options.ranks_per_run)] if options.ranks_per_run > 1 else []
    words += ["--shard", "{}/{}".format(*options.shard)] if options.shard[1] > 1 else []
    return shlex.join(words)


def num_points(recipe: Recipe, options: StudyOptions) -> int:
    """The number of points of the shard."""
    first, step = options.shard
    return len(range(first, len(recipe.planned), step))


def finish(recipe: Recipe, options: StudyOptions) -> list[Point]:
    """Write the newest row of every point into study.h5. Returns those of the shard."""
    options.check_ownership()
    points = [study.newest(options.out, item.point) for item in recipe.planned]
    study.write_index(options.out, points)
    for sentence in other_data(recipe, points):
        options.say(sentence)
    first, step = options.shard
    return points[first::step]


def other_data(recipe: Recipe, points: Sequence[Point]) -> list[str]:
    """Sentences about points that name the same model and data, but were played on other weights, images, labels or captions."""
    first: dict[str, Point] = {}
    sentences = []
    for item, point in zip(recipe.planned, points, strict=True):
        key = json.dumps([item.config.model.model_dump(mode="json"), item.config.data.model_dump(mode="json")])
        if point.data_digest and (other := first.setdefault(key, point)).data_digest != point.data_digest:
            sentences.append(
                f"{other.name} and {point.name} name the same data and model, but their files changed in between; "
                "do not compare them: put the files back, remove one point's directory, and go on with --resume"
            )
    return sentences


def prepare(recipe: Recipe, out: Path) -> None:
    """Write study.yaml, study.h5 and what signac needs. Raises UserError where that is not possible."""
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        disk.write_whole(out / study.RECIPE, recipe.to_yaml())
        signac.write_project(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({reason(error)}); choose a directory that can") from None
    study.write_index(out, [study.newest(out, item.point) for item in recipe.planned])

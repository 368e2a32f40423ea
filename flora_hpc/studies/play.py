"""Play the points of a study: parts of the world take one point after the other, the costliest first.

world of 5 ranks, 2 ranks a run        a counter on rank 0 deals the points
part 0: ranks 0, 1    ->  point 7, then 2, ...      each point is a run in a directory of its own,
part 1: ranks 2, 3    ->  point 4, then 0, ...      with the bits of a lone run;
part 2: rank 4        ->  point 1, then 5, ...      model, data and features stay in memory
"""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flora_hpc import experiment, loop, rundir
from flora_hpc.comm import counters, devices
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.devices import Neighbours
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.stop import Stop
from flora_hpc.config import Config
from flora_hpc.embed import Progress
from flora_hpc.errors import StoppedError, UserError, reason
from flora_hpc.job import aborter, guarded
from flora_hpc.observers import hdf5
from flora_hpc.owner.claim import Claim
from flora_hpc.records import study
from flora_hpc.records.opened import open_run
from flora_hpc.records.study import FOLDER, Point
from flora_hpc.setup import find_site
from flora_hpc.shared import Shared
from flora_hpc.studies import costs, signac
from flora_hpc.studies.points import Planned, Recipe

ERROR = "error.txt"  # in the directory of a point that a bug ended


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
    """Play all points of the study that have not finished, on all ranks of `world`. Returns the points of the study on rank 0.

    A point that fails is noted, and the others are played. Raises StoppedError, on every rank, when a signal stopped the study.
    """
    numbers = pending(recipe, world, options)
    device = together(world, lambda: devices.pick(launch, recipe.comm))
    neighbours = devices.find_neighbours(world, launch, device)
    forecasts = dict(
        zip(numbers, costs.forecast_all([recipe.planned[n] for n in numbers], world, options.ranks_per_run), strict=True)
    )
    numbers.sort(key=lambda number: -forecasts[number].flops)  # stable: in the order of the grid where costs are equal
    shared = Shared()
    sound = [recipe.planned[number].config for number in numbers if not forecasts[number].problem]
    make_features(sound, world, launch, neighbours, shared, options)
    num_ranks = {number: recipe.planned[number].num_ranks or options.ranks_per_run for number in numbers}
    with noting_lost_ranks(recipe, world, options):
        for ranks in sorted(set(num_ranks.values()), reverse=True):
            with part_of(world, ranks) as comm:
                player = Player(recipe, comm, launch, neighbours, shared, options, forecasts)
                dealer = Dealer(world, comm, options.stop, recipe.comm.timeout_seconds)
                player.play(dealer.deal([number for number in numbers if num_ranks[number] == ranks], f"points of {ranks} ranks"))
            if options.stop.agreed(world):
                break
    points = together(world, lambda: finish(recipe, options) if world.rank == 0 else [])
    if options.stop.agreed(world):
        finished = sum(point.status == "finished" for point in points)
        raise StoppedError(
            f"a signal stopped the study when {finished} of {len(points)} points had finished; "
            "the same command with --resume goes on from there",
            finished,
        )
    return points


def pending(recipe: Recipe, world: Communicator, options: StudyOptions) -> list[int]:
    """The numbers of the points that have not finished, as rank 0 sees them, on every rank."""

    def find() -> list[int]:
        if world.rank:
            return []
        first, step = options.shard
        points = [item.point for item in recipe.planned]
        return [n for n in range(first, len(points), step) if study.newest(options.out, points[n]).status != "finished"]

    own = together(world, find)
    numbers: list[int] = json.loads(world.allgather(json.dumps(own).encode())[0])
    return numbers


def make_features(
    configs: Sequence[Config], world: Communicator, launch: Launch, neighbours: Neighbours, shared: Shared, options: StudyOptions
) -> None:
    """Make the features that points need, each once, on all ranks together. A point whose images are wrong fails later."""
    seen: set[str] = set()
    for config in configs:
        sections = (config.model, config.data, config.features, config.method.name)
        key = json.dumps([part if isinstance(part, str) else part.model_dump(mode="json") for part in sections])
        if key in seen or options.stop.agreed(world):
            continue
        seen.add(key)
        with suppress(AgreedError):
            site = find_site(config, world, launch, options.stop, neighbours)
            built = experiment.build_together(config, site, shared)
            experiment.with_inputs(built, site, options.progress, shared)


@contextmanager
def noting_lost_ranks(recipe: Recipe, world: Communicator, options: StudyOptions) -> Iterator[None]:
    """Inside, an error of a collective of the world says what is left to do, once the other ranks have played all points.

    MPI ends the job with a lost rank. With torch.distributed, ranks that play points alone notice it in their last collective.
    """
    try:
        yield
    except RuntimeError as error:
        if world.rank == 0:
            finish(recipe, options)
        error.add_note("A rank was lost. What finished is kept, and the same command with --resume plays the rest.")
        raise


@contextmanager
def part_of(world: Communicator, num_ranks: int) -> Iterator[Communicator]:
    """The part of the world in which this rank plays: `num_ranks` ranks that follow each other, fewer in the last part."""
    if num_ranks == 1:
        yield Serial()
        return
    comm = world.split(world.rank // num_ranks)
    try:
        yield comm
    finally:
        comm.close()


@dataclass(frozen=True)
class Dealer:
    """Deals points to the parts of the world, for the part `comm`."""

    world: Communicator
    comm: Communicator
    stop: Stop
    timeout_seconds: float

    def deal(self, numbers: Sequence[int], purpose: str) -> Iterator[int]:
        """The points out of `numbers` that this part plays, the same on all its ranks; each is dealt when the part asks for it.

        After a signal, no part gets another point. The parts of a world whose ranks cannot reach a counter take turns instead.
        """
        counter, end = self.counter(), self.world.split(0, patient=True)  # other parts may play for hours longer than this one
        leader = self.world.rank - self.comm.rank
        leaders = sorted({int(text) for text in self.world.allgather(str(leader).encode())})
        turns = range(leaders.index(leader), len(numbers), len(leaders))
        draws = counter.draw(purpose, 0, len(numbers)) if counter else iter(turns)
        while not self.stop.agreed(self.comm):
            number = np.array([next(draws, -1) if self.comm.rank == 0 else 0], np.int64)
            self.comm.broadcast(number)
            if number[0] < 0:
                break
            yield numbers[int(number[0])]
        else:
            if counter:
                counter.end(purpose, 0)
        end.barrier()  # rank 0, which has the counter, leaves last
        end.close()

    def counter(self) -> counters.Counters | None:
        """A counter for all parts; None where a rank cannot reach it."""
        try:
            return counters.share(self.world, self.timeout_seconds, loop.OPTIONAL_STORE_SECONDS)
        except AgreedError:
            return None


@dataclass(frozen=True)
class Player:
    """Plays points on the ranks of one part of the world."""

    recipe: Recipe
    comm: Communicator
    launch: Launch
    neighbours: Neighbours
    shared: Shared
    options: StudyOptions
    forecasts: dict[int, costs.Cost]

    def play(self, numbers: Iterator[int]) -> None:
        """Play the points, and write how each one ended."""
        for number in numbers:
            planned = self.recipe.planned[number]
            with guarded(self.comm):
                self.write(self.ended(planned, self.forecasts[number]))  # an error here ends the job

    def ended(self, planned: Planned, forecast: costs.Cost) -> Point:
        """Play a point to its end; how it ended."""
        point, folder = planned.point, self.options.out / FOLDER / planned.point.name
        try:
            together(self.comm, lambda: self.refuse(forecast))
            self.run(planned, folder)
        except StoppedError:
            return self.result(point, folder, "stopped")
        except AgreedError as error:
            return replace(self.result(point, folder, "failed"), message=" ".join(str(error).split()))
        except Exception as error:
            if self.comm.size > 1:
                raise  # the other ranks of this part wait: `guarded` ends the job
            return replace(self.result(point, folder, "failed"), message=self.describe(error, folder))
        return self.result(point, folder, "finished")

    def refuse(self, forecast: costs.Cost) -> None:
        """Raise UserError for a point that does not fit in this rank's memory.

        Also for a point with a bug where several ranks would play it: an error on one of them would end the whole job.
        """
        if why := costs.too_large(forecast, self.launch) or (forecast.problem if forecast.is_bug and self.comm.size > 1 else ""):
            raise UserError(why)

    def run(self, planned: Planned, folder: Path) -> None:
        """Begin or resume the run of a point."""
        started = time.perf_counter()
        launch = replace(self.launch, rank=self.comm.rank, size=self.comm.size)
        with Claim(folder, self.options.say) as claim:
            contents, _ = rundir.enter(self.comm, folder, planned.config, claim, resume=True)
            if contents.finished:
                return
            together(self.comm, lambda: rundir.check_plugins(folder) if self.comm.rank == 0 and contents.unfinished else None)
            if self.comm.rank == 0:
                (folder / study.ROW).unlink(missing_ok=True)
                signac.write_state_point(self.options.out, planned.point)
            options = loop.RunOptions(
                folder,
                lambda: [claim, hdf5.build(folder)],
                started=started,
                resume=contents.unfinished,
                abort_job=aborter(self.comm),
                check_ownership=claim.check,
                stop=self.options.stop,
                neighbours=self.neighbours,
                shared=self.shared,
            )
            loop.run(planned.config, self.comm, launch, options)

    def result(self, point: Point, folder: Path, status: str) -> Point:
        """The row of a point whose run ended with a status."""
        if self.comm.rank or not (folder / "run.h5").is_file():
            return replace(point, status=status)
        with suppress(UserError):  # a run.h5 that a full disk cut off
            return replace(study.result(point, open_run(folder, ())), status=status)
        return replace(point, status=status)

    def describe(self, error: Exception, folder: Path) -> str:
        """One line about an error; the trace of a bug is written beside the run."""
        if isinstance(error, UserError):
            return " ".join(str(error).split())
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {reason(error)}; {folder / ERROR} has the trace"

    def write(self, point: Point) -> None:
        """Write the row of a point. Raises UserError where that is not possible."""
        if self.comm.rank:
            return
        try:
            study.write_row(self.options.out, point)
        except OSError as error:
            raise UserError(
                f"{self.options.out / FOLDER / point.name}: cannot be written ({reason(error)}); make room, and go on with --resume"
            ) from None


def prepare(recipe: Recipe, out: Path) -> None:
    """Write study.yaml, study.h5 and what signac needs. Raises UserError where that is not possible."""
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        part = out / f".{study.RECIPE}.{os.getpid()}.part"
        part.write_text(recipe.to_yaml())
        part.replace(out / study.RECIPE)
        signac.write_project(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({reason(error)}); choose a directory that can") from None
    study.write_index(out, [study.newest(out, item.point) for item in recipe.planned])


def finish(recipe: Recipe, options: StudyOptions) -> list[Point]:
    """Write the newest row of every point into study.h5, and return them."""
    options.check_ownership()
    points = [study.newest(options.out, item.point) for item in recipe.planned]
    study.write_index(options.out, points)
    return points

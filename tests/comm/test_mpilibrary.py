"""MPI libraries by their real version texts, launchers by their real variables; no MPI is loaded."""

from pathlib import Path

import pytest

from flora_hpc.comm import mpilibrary
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.mpilibrary import Library
from flora_hpc.errors import UserError

MPICH_TEXT = "MPICH Version:      5.0.2\nMPICH Release date: unknown\nMPICH ABI:          18:2:6"
OPENMPI_TEXT = "Open MPI v5.0.11, package: Open MPI conda@host Distribution, ident: 5.0.11"
MPICH = mpilibrary.identify(MPICH_TEXT, [])
OPENMPI = mpilibrary.identify(OPENMPI_TEXT, [])
CRAY = mpilibrary.identify("MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)", [])

PMIX = {"SLURM_MPI_TYPE": "pmix", "PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.41.0"}
PMI2 = {"SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "1", "PMI_SIZE": "4", "PMI_FD": "9"}
NONE = {"SLURM_MPI_TYPE": "none"}
SRUN = Launch("slurm", 1, 4, 1, 2)


@pytest.mark.parametrize(
    ("text", "name", "usual"),
    [
        (MPICH_TEXT, "MPICH 5.0.2", "pmi"),
        (OPENMPI_TEXT, "Open MPI 5.0.11", "pmix"),
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4", "Open MPI 4.1.4", "pmix"),
        ("Intel(R) MPI Library 2021.8 for Linux* OS\n", "Intel MPI 2021.8", "pmi"),
        ("MVAPICH2 Version      :\t2.3.7\n", "MVAPICH 2.3.7", "pmi"),
        ("MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)", "Cray MPICH 8.1.25.17", ""),
        ("Some MPI 1.0\nmore", "Some MPI 1.0", ""),
    ],
)
def test_a_library_is_known_by_its_version_text(text: str, name: str, usual: str) -> None:
    library = mpilibrary.identify(text, [])
    assert (library.name, library.usual) == (name, usual)


def test_mpich_with_pmix_is_known_by_the_library_it_is_linked_with() -> None:
    both = mpilibrary.identify(MPICH_TEXT, [Path("/opt/pmix/lib/libpmix.so.2.6.2")])
    assert both.understands == {"pmi", "pmix"}
    mpilibrary.check(SRUN, both, PMIX)
    mpilibrary.check(SRUN, both, PMI2)


@pytest.mark.parametrize(
    ("parts", "understands"),
    [
        (["mca_pmix_ext3x.so", "mca_pmix_isolated.so"], {"pmix"}),  # as Debian builds it
        (["mca_pmix_ext3x.so", "mca_pmix_s2.so"], {"pmix", "pmi"}),
        ([], {"pmix", "pmi"}),  # built in one piece: cannot be known
    ],
)
def test_an_older_open_mpi_with_slurms_pmi_is_known_by_its_parts(tmp_path: Path, parts: list[str], understands: set[str]) -> None:
    (tmp_path / "openmpi" / "lib").mkdir(parents=True)
    for part in parts:
        (tmp_path / "openmpi" / "lib" / part).touch()
    files = [tmp_path / "libc.so.6", tmp_path / "libmpi.so.40.30.4"]
    assert mpilibrary.identify("Open MPI v4.1.4, package: x", files).understands == understands
    assert mpilibrary.identify(OPENMPI_TEXT, files).understands == {"pmix"}, "version 5 has lost it"


@pytest.mark.parametrize(
    ("launcher", "environ", "offer"),
    [
        ("slurm", PMIX, "pmix"),
        ("slurm", PMIX | {"SLURM_MPI_TYPE": "pmix_v4"}, "pmix"),
        ("slurm", PMI2, "pmi"),
        ("slurm", NONE, "none"),
        ("slurm", PMIX | NONE, "none"),  # PMIX_* is what is left of an outer step
        ("slurm", {"SLURM_MPI_TYPE": "cray_shasta", "PMI_SIZE": "4"}, "pmi"),
        ("mpich", {"PMI_SIZE": "4", "PMI_FD": "6"} | PMIX, "pmi"),
        ("openmpi", {"PMIX_NAMESPACE": "prterun-1@1"} | PMI2, "pmix"),
        ("none", {}, "none"),
    ],
)
def test_what_a_launcher_offers_is_read_from_its_variables(launcher: str, environ: dict[str, str], offer: str) -> None:
    assert mpilibrary.offered_protocol(Launch(launcher, 0, 2, 0, 2), environ) == offer


@pytest.mark.parametrize(
    ("library", "environ", "sentence"),
    [
        (MPICH, NONE, "MPICH 5.0.2, which mpi4py loads, sees a world of 1: use srun --mpi=pmi2, or set comm.backend: gloo"),
        (MPICH, PMIX, "MPICH 5.0.2, which mpi4py loads, does not understand --mpi=pmix: use srun --mpi=pmi2, or"),
        (OPENMPI, NONE, "Open MPI 5.0.11, which mpi4py loads, sees a world of 1: use srun --mpi=pmix, or"),
        (OPENMPI, PMI2, "Open MPI 5.0.11, which mpi4py loads, does not understand --mpi=pmi2: use srun --mpi=pmix, or"),
    ],
)
def test_a_wrong_mpi_of_srun_is_answered_with_the_right_one(library: Library, environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        mpilibrary.check(SRUN, library, environ)
    assert str(error.value).startswith(f"srun started 4 processes, but {sentence}")


@pytest.mark.parametrize(("library", "environ"), [(MPICH, PMI2), (OPENMPI, PMIX), (CRAY, NONE), (CRAY, PMIX)])
def test_what_fits_or_cannot_be_known_is_let_through(library: Library, environ: dict[str, str]) -> None:
    mpilibrary.check(SRUN, library, environ)


def test_one_process_may_be_started_in_any_way() -> None:
    mpilibrary.check(Launch("slurm", 0, 1, 0, 1), MPICH, NONE)
    mpilibrary.check(Launch(), OPENMPI, {})


@pytest.mark.parametrize(
    ("launcher", "library", "environ", "sentence"),
    [
        (
            "mpich",
            OPENMPI,
            {"PMI_SIZE": "4"},
            "MPICH's mpiexec started 4 processes, but Open MPI 5.0.11, .* use Open MPI's own mpiexec",
        ),
        ("openmpi", MPICH, {"PMIX_NAMESPACE": "x"}, "Open MPI's mpiexec started 4 processes, but MPICH .* use MPICH's own mpiexec"),
        ("torchrun", MPICH, PMI2, "torchrun started 4 processes, but MPICH 5.0.2, .* has no part in that: set comm.backend: gloo"),
    ],
)
def test_the_mpiexec_of_another_library_is_answered_with_the_right_one(
    launcher: str, library: Library, environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        mpilibrary.check(Launch(launcher, 1, 4, 1, 2), library, environ)


def test_a_world_of_another_size_is_told_afterwards() -> None:
    mpilibrary.check_size(SRUN, CRAY, 4)
    with pytest.raises(UserError, match=r"Cray MPICH .* sees a world of 1: use the --mpi that your cluster's guide names"):
        mpilibrary.check_size(SRUN, CRAY, 1)
    with pytest.raises(UserError, match=r"one process was started, but MPICH .* sees a world of 4: start it with mpiexec or srun"):
        mpilibrary.check_size(Launch(), MPICH, 4)


def test_mpich_is_told_which_protocol_its_own_mpiexec_means() -> None:
    environ = {"PMI_SIZE": "4"} | PMIX
    mpilibrary.prepare(Launch("mpich", 1, 4, 1, 2), MPICH, environ)
    assert environ["MPIR_CVAR_PMI_VERSION"] == "1"
    for launch, library, untouched in ((SRUN, MPICH, dict(PMI2)), (Launch("openmpi", 1, 4, 1, 2), OPENMPI, dict(PMIX))):
        mpilibrary.prepare(launch, library, untouched)
        assert "MPIR_CVAR_PMI_VERSION" not in untouched


def test_only_mpich_under_slurms_pmi_is_initialised_in_a_thread() -> None:
    assert mpilibrary.needs_fresh_heap(SRUN, MPICH, PMI2)
    assert not mpilibrary.needs_fresh_heap(SRUN, OPENMPI, PMIX)
    assert not mpilibrary.needs_fresh_heap(SRUN, CRAY, PMI2)
    assert not mpilibrary.needs_fresh_heap(Launch("mpich", 1, 4, 1, 2), MPICH, {"PMI_SIZE": "4"})

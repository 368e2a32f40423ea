"""Job scripts: what they ask for, that the shell takes nothing in them for its own, and what mistakes are answered with."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import _jobchecks, app, slurm
from flora_hpc.comm import mpilibrary
from flora_hpc.errors import UserError
from tests.cli.test_bad_input import call
from tests.conftest import ROOT

Invoke = Callable[..., str]
QUICK = "configs/quickstart.yaml"
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
FAKE = """#!/bin/bash
# writes down how it was called, each word ended by a NUL
printf '%s\\0' "$@" > "$CALLS/{name}"
{special}
"""
SPECIAL = {
    "srun": 'printf "%s:%s" "$MASTER_ADDR" "$MASTER_PORT" > "$CALLS/meeting"; exit "${SRUN_CODE:-0}"',
    "scontrol": 'if [ "$1" = show ]; then printf "node3\\nnode4\\n"; fi',
    "sbatch": 'cat > "$CALLS/script"; echo "Submitted batch job 7"; echo "${SBATCH_SAYS:-}" >&2; exit "${SBATCH_CODE:-0}"',
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of nothing but srun, scontrol and sbatch that write down how they are called, in the folder returned."""
    programs, folder = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    folder.mkdir()
    for name, special in SPECIAL.items():
        (programs / name).write_text(FAKE.format(name=name, special=special))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder))
    monkeypatch.chdir(ROOT)
    return folder


def words(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split("\0")[:-1]


def play(script: str, calls: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Slurm would."""
    file = calls / "job.sh"
    file.write_text(script)
    assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "node[3-4]"}
    return subprocess.run(["bash", file, *arguments], capture_output=True, text=True, env=os.environ | slurm | environ)


def written_by(script: str) -> list[str]:
    (line,) = re.findall("^# Written by:\n#   (.*)$", script, re.M)
    return shlex.split(line)


def test_there_is_a_script_for_each_kind_of_job() -> None:
    assert [path.stem for path in SCRIPTS] == ["clients-array", "container", "cpu-nodes", "gpu-node", "gpu-nodes"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_in_slurm_are_what_the_command_writes(path: Path, invoke: Invoke, calls: Path) -> None:
    script = path.read_text()
    command = written_by(script)
    assert command[:2] == ["flora-hpc", "slurm"]
    assert invoke(*command[1:]) == script, f"write it anew: {shlex.join(command)} > slurm/{path.name}"
    assert play(script, calls, SLURM_ARRAY_TASK_ID="0").returncode == 0
    assert max(map(len, script.splitlines())) <= 132


def test_what_a_script_asks_slurm_for(invoke: Invoke, calls: Path) -> None:
    script = invoke(
        "slurm", QUICK, "--nodes", 4, "--gpus-per-node", 2, "--time", "2:00:00", "--partition", "gpu", "--account", "p1"
    )
    assert re.findall("^#SBATCH --(.*)$", script, re.M) == [
        "job-name=quickstart",
        "partition=gpu",
        "account=p1",
        "nodes=4",
        "ntasks-per-node=2",
        "cpus-per-task=4",
        "gpus-per-node=2",
        "time=2:00:00",
        "signal=USR1@120",
        "requeue",
        "open-mode=append",
        "output=%x-%j.log",
    ]


def test_what_the_tasks_run(invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--nodes", 2, "--mpi", "pmix", "-s", "rounds=5")
    play(script, calls, "-s", "client.lr=1e-4")
    start = ["--kill-on-bad-exit=1", "--mpi=pmix", "--cpus-per-task=4", "flora-hpc", "run", QUICK]
    rest = ["--out", "runs/quickstart", "--resume", "-s", "rounds=5", "-s", "client.lr=1e-4"]
    assert words(calls, "srun") == start + rest


NASTY = ['it\'s "here"', "$(touch BAD) `touch BAD` $HOME", "a;touch BAD&b|c>BAD #d", "{a,b} [x] * ? ~ \\", "-s", "ümlaut \u00a0 %j"]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_is_taken_for_shell(
    text: str, invoke: Invoke, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / text).mkdir()
    shutil.copy(ROOT / QUICK, tmp_path / text / f"{text}.yaml")
    monkeypatch.chdir(tmp_path / text)
    settings = ["data.name=imagefolder", f"data.path={text}/photos", "method.targets=[text.q_proj, text.v_proj]"]
    flags = [word for setting in settings for word in ("-s", setting)]
    image, out = f"{text}/image.sif", f"runs/{text}"
    arguments = [f"./{text}.yaml", "--gpus-per-node", 1, "--out", out, "--container", image, *flags]
    script = invoke("slurm", *arguments)
    before = sorted(path.name for path in Path.cwd().iterdir())
    play(script, calls, text)
    config = f"{'./' * text.startswith('-')}{text}.yaml"
    program = ["apptainer", "exec", "--nv", image, "flora-hpc", "run", config, "--out", out, "--resume"]
    assert words(calls, "srun")[3:] == [*program, *flags, text]
    assert sorted(path.name for path in Path.cwd().iterdir()) == before
    assert invoke(*written_by(script)[1:]) == script


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (143, False)])
def test_code_75_puts_the_job_back_into_the_queue(code: int, requeued: bool, invoke: Invoke, calls: Path) -> None:
    assert play(invoke("slurm", QUICK), calls, SRUN_CODE=str(code)).returncode == code
    assert (calls / "scontrol").exists() == requeued
    if requeued:
        assert words(calls, "scontrol") == ["requeue", "7"]


def test_an_array_has_a_task_and_a_directory_for_each_number_of_clients(invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--array", "10, 20,1000", "--out", "runs/a b/")
    assert "#SBATCH --array=0-2\n" in script
    assert "#SBATCH --output=%x-%A_%a.log\n" in script
    for task, clients in enumerate([10, 20, 1000]):
        play(script, calls, SLURM_ARRAY_TASK_ID=str(task))
        assert words(calls, "srun")[6:] == ["--out", f"runs/a b-{clients}", "--resume", "-s", f"partition.num_clients={clients}"]


def test_a_task_of_an_array_requeues_itself_alone(invoke: Invoke, calls: Path) -> None:
    """The last task has the array's number as its SLURM_JOB_ID, by which `scontrol requeue` would take all tasks along."""
    play(invoke("slurm", QUICK, "--array", "10,20"), calls, SRUN_CODE="75", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    assert words(calls, "scontrol") == ["requeue", "7_1"]


def test_ranks_in_a_container_are_told_where_to_meet(invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--nodes", 2, "--container", "flora.sif")
    play(script, calls, SLURM_JOB_ID="20003")
    assert (calls / "meeting").read_text() == "node3:20003"
    assert words(calls, "srun")[3:6] == ["apptainer", "exec", "flora.sif"]
    assert words(calls, "srun")[-2:] == ["-s", "comm.backend=gloo"]


CRAY = "MPI VERSION    : CRAY MPICH version 8.1.27.26"
OPEN_MPI, MPICH, INTEL = "Open MPI v4.1.4, package: Debian", "MPICH Version: 5.0.2", "Intel(R) MPI Library 2021.12 for Linux* OS"


@pytest.mark.parametrize(
    ("library", "arguments", "mpi", "backend"),
    [
        (OPEN_MPI, ["--nodes", "2"], "pmix", None),
        (MPICH, ["--nodes", "2"], "pmi2", None),
        (INTEL, ["--nodes", "2", "-s", "comm.backend=mpi"], "pmi2", None),
        (CRAY, ["--gpus-per-node", "2", "--mpi", "pmi2"], "pmi2", None),
        (MPICH, ["--nodes", "2", "-s", "comm.backend=gloo"], "none", None),
        (MPICH, ["--nodes", "2", "--mpi", "none"], "none", "gloo"),
        (MPICH, ["--gpus-per-node", "4", "--mpi", "none"], "none", "nccl"),
        (MPICH, ["--gpus-per-node", "2", "--ntasks-per-node", "4", "--mpi", "none"], "none", "gloo"),
        (MPICH, ["--nodes", "2", "--mpi", "pmix"], "pmix", None),
        (MPICH, ["--nodes", "2", "--container", "flora.sif"], "none", "gloo"),
        (MPICH, [], "none", None),
        (MPICH, ["-s", "comm.backend=serial"], "none", None),
        (None, ["--gpus-per-node", "4"], "none", "nccl"),
    ],
)
def test_mpi_follows_the_library_and_the_backend(
    library: str | None,
    arguments: list[str],
    mpi: str,
    backend: str | None,
    invoke: Invoke,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slurm, "library", lambda: library and mpilibrary.identify(library, []))
    script = invoke("slurm", QUICK, *arguments)
    play(script, calls)
    assert words(calls, "srun")[1] == f"--mpi={mpi}"
    named = [word for word in words(calls, "srun") if word.startswith("comm.backend=")]
    assert named == ([f"comm.backend={backend}"] if backend else [word for word in arguments if word.startswith("comm.")])
    assert invoke(*written_by(script)[1:]) == script


@pytest.mark.mpi
def test_the_library_that_is_installed_is_found(flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str]) -> None:
    version = subprocess.run([*mpiexec, "--version"], capture_output=True, text=True).stdout
    result = flora("slurm", QUICK, "--nodes", "2")
    assert result.returncode == 0, result.stderr
    assert f"--mpi={'pmix' if 'Open MPI' in version or 'open-mpi' in version else 'pmi2'}" in result.stdout


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:00", 5400),
        ("2:00:00", 7200),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("1-12:30:01", 131401),
        ("72:00:00", 259200),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, seconds: int) -> None:
    assert _jobchecks.seconds(time) == seconds


@pytest.mark.parametrize(
    "time", ["", "two hours", "2h", "1:00:00:00", "1:75:00", "1:00:75", "1-25", "-5", "1.5", "UNLIMITED", "1:2:3\n"]
)
def test_a_time_limit_that_slurm_would_not_read(time: str) -> None:
    with pytest.raises(UserError, match="is no time limit; give hours:minutes:seconds"):
        _jobchecks.seconds(time)


MISTAKES = {
    "short time": (
        ["--time", "2:00"],
        "--time: 2:00 is 120 seconds to Slurm, whose warning comes up to 180 seconds before the end",
    ),
    "bad time": (["--time", "2h"], "--time: '2h' is no time limit; give hours:minutes:seconds"),
    "no nodes": (["--nodes", "0"], "--nodes: must be at least 1, not 0"),
    "negative GPUs": (["--gpus-per-node", "-1"], "--gpus-per-node: must be at least 0, not -1"),
    "no tasks": (["--ntasks-per-node", "0"], "--ntasks-per-node: must be at least 1, not 0"),
    "no cores": (["--cpus-per-task", "0"], "--cpus-per-task: must be at least 1, not 0"),
    "nonsense array": (
        ["--array", "0-9"],
        "--array: '0-9' is not a whole number of at least 1; give for example --array 10,100,1000",
    ),
    "empty array": (["--array", ""], "--array: '' is not a whole number of at least 1"),
    "same count twice": (["--array", "10,10"], "--array: names 10 twice; name it once"),
    "array and clients": (
        ["--array", "10", "-s", "partition.num_clients=5"],
        "--array sets partition.num_clients, too; leave one of the two",
    ),
    "array of a key without values": (["--array", "client.lr="], "--array client.lr=: write key=value,value"),
    "array of an unknown key": (["--array", "client.lrr=1,2"], "client.lrr: unknown key; did you mean client.lr?"),
    "array with equal values": (["--array", "client.lr=1e-3,0.001"], "--array: names client.lr=0.001 twice; name it once"),
    "array and its key": (
        ["--array", "client.lr=1e-3,1e-4", "-s", "client.lr=1"],
        "--array sets client.lr, too; leave one of the two",
    ),
    "array with a wrong value": (["--array", "client.lr=1e-3,fast"], "client.lr"),
    "array of one that does not fit": (["--array", "10,3", "-s", "cohort.size=5"], "only 3 are registered"),
    "config": (["-s", "client.local_epoch=2"], "client.local_epoch: unknown key; did you mean client.epochs?"),
    "partition": (["--partition", "gpu; rm"], "--partition: 'gpu; rm' is no name; give letters, digits and"),
    "account": (["--account", ""], "--account: '' is no name"),
    "line break": (["--out", "runs/a\n#SBATCH --nodes=99"], "is empty or holds a line break or another control character"),
    "empty image": (["--container", ""], "--container: '' is empty"),
    "serial": (
        ["--nodes", "2", "-s", "comm.backend=serial"],
        "'serial' is one process, and this job has 2 tasks; set comm.backend: auto",
    ),
    "mpi without": (["--nodes", "2", "--mpi", "none", "-s", "comm.backend=mpi"], "give --mpi pmix or pmi2"),
    "container": (
        ["--nodes", "2", "--container", "a.sif", "-s", "comm.backend=mpi"],
        "library of the container cannot be seen from here",
    ),
    "sbatch without a name": (["--sbatch", "=high"], "--sbatch: '=high' does not begin with the long name of an option of sbatch"),
    "sbatch by its letter": (["--sbatch", "p=gpu"], "write KEY=VALUE or KEY, such as qos=high or exclusive"),
    "sbatch with a line break": (["--sbatch", "comment=a\n#SBATCH --nodes=9"], "is empty or holds a line break"),
    "sbatch with an empty value": (["--sbatch", "qos="], "--sbatch qos: '' is empty"),
    "sbatch that has an option": (["--sbatch", "nodes=4"], "--sbatch nodes: the script sets this itself; give --nodes instead"),
    "sbatch that every script has": (
        ["--sbatch", "--signal=TERM@9"],
        "it, give --signal on the command line of sbatch: sbatch --signal",
    ),
    "sbatch that is no script's": (["--sbatch", "wrap=ls"], "--sbatch wrap: is nothing that a script can ask for"),
    "sbatch twice": (["--sbatch", "qos=a", "--sbatch", "qos=b"], "--sbatch qos: is given twice; give it once"),
    "cpu bind": (["--cpu-bind", "cores; rm"], "--cpu-bind: 'cores; rm' is no name"),
    "no setup": (["--setup", "nowhere.sh"], "--setup: nowhere.sh: cannot be read (No such file or directory); give a text file"),
    "setup folder": (["--setup", "configs"], "--setup: configs: cannot be read (Is a directory)"),
    "shards of a run": (["--shards", "3"], "--shards: is for a study; give --study DIR in place of CONFIG, or leave it out"),
    "ranks of a run": (["--ranks-per-run", "2"], "--ranks-per-run: is for a study; give --study DIR"),
    "both": (["--study", "studies/x"], "--study studies/x: has a configuration already; leave configs/quickstart.yaml out"),
    "mpi": (["--mpi", "openmpi"], "'openmpi' is not one of 'auto', 'pmix', 'pmi2', 'none'"),
}


SETUPS = {
    "binary": (b"\x7fELF\0\0", "is no text (UTF-8); give a file with lines of bash"),
    "latin": ("module load fran\u00e7ais".encode("latin-1"), "is no text (UTF-8)"),
    "windows": (b"module load openmpi\r\n", "has the line ends of Windows, which bash does not read; convert it with dos2unix"),
    "large": (b"# comment\n" * 7000, "is larger than 64 KB; give only lines that the job needs"),
    "sbatch": (b"module load x\n#SBATCH --qos=high\n", "line 2: '#SBATCH --qos=high' is an option of sbatch; give it as --sbatch"),
    "open quote": (b"module load 'openmpi\n", "bash does not understand it (line 1: unexpected EOF while looking for matching"),
    "open document": (b"cat <<END\nmodule load openmpi\n", "bash does not understand it"),
}


@pytest.mark.parametrize("mistake", SETUPS)
def test_setup_files_that_no_script_can_hold(
    mistake: str, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, message = SETUPS[mistake]
    (tmp_path / "setup.sh").write_bytes(data)
    code, error = call(["slurm", QUICK, "--setup", str(tmp_path / "setup.sh")], monkeypatch, capsys)
    assert (code, error.count(f"--setup: {tmp_path / 'setup.sh'}: ")) == (2, 1), error
    assert message in error


def test_setup_lines_stand_before_srun_as_they_are(invoke: Invoke, calls: Path, tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text('set -euo pipefail\n\nexport GREETING="it\'s \'here\'"   # $HOME\necho "$GREETING" > "$CALLS/greeting"\n\n')
    script = invoke("slurm", QUICK, "--setup", setup)
    assert setup.read_text().rstrip() in script
    assert script.index("#SBATCH --output") < script.index("set -euo") < script.index("srun --kill")
    assert play(script, calls, SRUN_CODE="75").returncode == 75, "set -e must not end the script before the requeue"
    assert (calls / "greeting").read_text() == "it's 'here'\n"
    assert words(calls, "scontrol") == ["requeue", "7"]
    assert invoke(*written_by(script)[1:]) == script


def test_further_options_of_sbatch_and_srun(invoke: Invoke, calls: Path) -> None:
    options = [
        "qos=high",
        "--mem=64G",
        "exclusive",
        "mail-user=a@b.org",
        'comment=it is "so" #1',
        "constraint=[a|b]",
        "gpus-per-task=1",
    ]
    flags = [word for option in options for word in ("--sbatch", option)]
    script = invoke("slurm", QUICK, "--nodes", 2, "--ntasks-per-node", 2, "--cpu-bind", "mask_cpu:0x3,0xC", *flags, "--mpi", "none")
    assert re.findall("^#SBATCH --(.*)$", script, re.M)[5:12] == [
        "qos=high",
        "mem=64G",
        "exclusive",
        "mail-user=a@b.org",
        'comment="it is \\"so\\" #1"',
        "constraint=[a|b]",
        "gpus-per-task=1",
    ]
    assert "# A run on 2 nodes with 2 GPUs each: 4 ranks, one for each GPU" in script
    play(script, calls)
    assert words(calls, "srun")[:4] == ["--kill-on-bad-exit=1", "--mpi=none", "--cpu-bind=mask_cpu:0x3,0xC", "--cpus-per-task=4"]
    assert words(calls, "srun")[-1] == "comm.backend=nccl", "each rank has a GPU"
    assert invoke(*written_by(script)[1:]) == script


@pytest.mark.parametrize(
    ("array", "runs"),
    [
        ("client.lr=1e-4, 1e-3", {"lr=0.0001": "client.lr=0.0001", "lr=0.001": "client.lr=0.001"}),
        ("method.name=flora,fedlc", {"method=flora": "method.name=flora", "method=fedlc": "method.name=fedlc"}),
        (
            "partition.num_clients=10,20",
            {"num_clients=10": "partition.num_clients=10", "num_clients=20": "partition.num_clients=20"},
        ),
        ("seed=range(3,5)", {"seed=3": "seed=3", "seed=4": "seed=4"}),
    ],
)
def test_an_array_over_any_key(array: str, runs: dict[str, str], invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--array", array)
    for task, (name, setting) in enumerate(runs.items()):
        play(script, calls, SLURM_ARRAY_TASK_ID=str(task))
        assert words(calls, "srun")[6:] == ["--out", f"runs/quickstart-{name}", "--resume", "-s", setting]
    assert "#SBATCH --array=0-1\n" in script
    assert invoke(*written_by(script)[1:]) == script


def test_an_array_over_lists_and_texts_for_the_shell(invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--array", "method.targets=[text.q_proj, text.v_proj],[text.q_proj]")
    named = []
    for task, value in enumerate(['["text.q_proj", "text.v_proj"]', '["text.q_proj"]']):
        play(script, calls, SLURM_ARRAY_TASK_ID=str(task))
        assert words(calls, "srun")[8:] == ["--resume", "-s", f"method.targets={value}"][-len(words(calls, "srun")[8:]) :]
        named.append(words(calls, "srun")[7])
    assert len(set(named)) == 2
    assert all(re.fullmatch(r"runs/quickstart-targets=[\w.,@+=-]+", name) for name in named), named


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[mistake]
    code, error = call(["slurm", QUICK, "--submit", *arguments], monkeypatch, capsys)
    assert code == 2
    assert " ".join(error.replace("│", " ").split()).count(message) == 1, error
    assert not (calls / "sbatch").exists()


@pytest.mark.parametrize(
    ("library", "backend", "message"),
    [
        (None, "mpi", "--mpi auto: mpi4py is not installed here; give --mpi pmix"),
        ("SomeMPI 1.0", "auto", "--mpi auto: nobody knows which SomeMPI 1.0 needs; give --mpi pmix (Open MPI) or pmi2"),
        (CRAY, "auto", "--mpi auto: nobody knows which Cray MPICH 8.1.27.26 needs; give --mpi pmix"),
    ],
)
def test_an_mpi_library_that_does_not_say_how(
    library: str | None, backend: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "library", lambda: library and mpilibrary.identify(library, []))
    code, error = call(["slurm", QUICK, "--nodes", "2", "-s", f"comm.backend={backend}"], monkeypatch, capsys)
    assert (code, error.count(message)) == (2, 1), error


def test_submit_hands_the_printed_script_to_sbatch(invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", QUICK, "--nodes", 2, "--mpi", "pmix")
    assert invoke("slurm", QUICK, "--nodes", 2, "--mpi", "pmix", "--submit") == "Submitted batch job 7\n"
    assert (calls / "script").read_text() == script
    assert words(calls, "sbatch") == [""], "it reads the script from its standard input"


def test_submit_tells_why_sbatch_refused(calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SBATCH_CODE", "1")
    monkeypatch.setenv("SBATCH_SAYS", "sbatch: error: Batch job submission failed: Requested node configuration is not available")
    code, error = call(["slurm", QUICK, "--submit"], monkeypatch, capsys)
    assert code == 2
    assert "sbatch refused the job: Batch job submission failed: Requested node configuration is not available; sinfo" in error


def test_submit_without_sbatch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, error = call(["slurm", QUICK, "--submit"], monkeypatch, capsys)
    assert (code, error.count("do this on a login node of the cluster, or leave --submit out")) == (2, 1)


def test_notes_stay_out_of_the_script(invoke: Invoke, calls: Path) -> None:
    assert invoke("slurm", QUICK, "-s", "model.name=ViT-B-32", "-s", "model.pretrained=none").startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--array", "10,10000"], "10000 clients for 1438 training examples leaves some without any"),
        (["-s", "partition={name: fewshot, num_clients: 90, shots: 16}"], "partition.shots: "),
        (["-s", "model.name=ViT-B-33"], "no model 'ViT-B-33'"),
    ],
    ids=["a number of an array", "another split", "the model"],
)
@pytest.mark.parametrize("submit", [[], ["--submit"]], ids=["print", "submit"])
def test_what_a_run_would_refuse_is_refused_before_it_waits_in_the_queue(
    submit: list[str],
    arguments: list[str],
    message: str,
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, error = call(["slurm", QUICK, *arguments, *submit], monkeypatch, capsys)
    assert (code, error.count(message)) == (2, 1), error
    assert not (calls / "sbatch").exists()


def test_ranks_without_work_are_warned_about(calls: Path) -> None:
    words = ["slurm", QUICK, "--nodes", "4", "--ntasks-per-node", "4", "--mpi", "pmix"]
    result = CliRunner().invoke(app, [*words, "--array", "10,100"], catch_exceptions=False)
    (warning,) = result.stderr.splitlines()
    assert warning == (
        "warning: partition.num_clients=10: 6 of 16 ranks have no work, since a round has 10 clients; ask for fewer ranks"
    )
    assert result.stdout.startswith("#!/bin/bash\n")
    assert CliRunner().invoke(app, [*words, "-s", "partition.num_clients=20"], catch_exceptions=False).stderr == ""
    on_gpus = [*words, "--gpus-per-node", "4", "-s", "partition.num_clients=20", "-s", "client.group_size=2"]
    assert CliRunner().invoke(app, on_gpus, catch_exceptions=False).stderr == (
        "warning: 6 of 16 ranks have no work, since a round has 20 clients, which make 10 groups of up to 2; "
        "ask for fewer ranks, or set client.group_size: 1\n"
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["-s", "data={name: imagefolder, path: /scratch/photos}"], "data.path: /scratch/photos"),
        (["-s", "model.name=ViT-B-32", "-s", "model.pretrained=/scratch/clip.pt"], "model.pretrained: /scratch/clip.pt"),
        (["-s", "data={name: pets, root: /scratch}"], "data.root: /scratch"),
        (["-s", "partition={name: file, path: /scratch/clients.csv}"], "partition.path: /scratch/clients.csv"),
    ],
)
def test_what_only_the_nodes_see_is_not_checked(settings: list[str], key: str, calls: Path) -> None:
    result = CliRunner().invoke(app, ["slurm", QUICK, *settings], catch_exceptions=False)
    lacks = f"warning: clients and ranks are not checked, for this machine lacks what the job needs: {key}\n"
    assert result.stderr.startswith(lacks)
    assert result.stdout.startswith("#!/bin/bash\n")


# --- scripts for studies


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six points, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "a study"
    grid = ["method.name=flora,fedlc", "--seeds", "3", "-s", "partition.num_clients=4"]
    result = CliRunner().invoke(app, ["study", str(ROOT / QUICK), *grid, "--out", str(folder), "--prepare"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_a_script_for_a_study(study: Path, invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", "--study", study, "--nodes", 2, "--ntasks-per-node", 2, "--mpi", "pmix", "--ranks-per-run", 2)
    assert "#SBATCH --job-name=a-study\n" in script
    assert "# A study on 2 nodes, without GPUs: 4 ranks, 4 cores for each rank.\n" in script
    assert play(script, calls, "-s", "comm.timeout_seconds=60", SRUN_CODE="75").returncode == 75
    program = ["flora-hpc", "study", "--out", str(study), "--resume", "--ranks-per-run", "2", "-s", "comm.timeout_seconds=60"]
    assert words(calls, "srun")[3:] == program
    assert words(calls, "scontrol") == ["requeue", "7"]
    assert invoke(*written_by(script)[1:]) == script
    assert max(len(line) for line in script.splitlines() if str(study) not in line) <= 132


def test_a_study_in_shards_without_mpi(study: Path, invoke: Invoke, calls: Path) -> None:
    script = invoke("slurm", "--study", study, "--nodes", 2, "--mpi", "none", "--shards", 3, "--container", "flora.sif")
    assert "#SBATCH --array=0-2\n" in script
    assert "#SBATCH --output=%x-%A_%a.log\n" in script
    assert "# A job array: 3 such jobs, each of which plays every 3rd point of the study.\n" in script
    play(script, calls, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="5", SRUN_CODE="75")
    assert words(calls, "srun")[-4:] == ["--shard", "2/3", "-s", "comm.backend=gloo"]
    assert words(calls, "scontrol") == ["requeue", "5_2"]
    assert invoke(*written_by(script)[1:]) == script


def test_more_ranks_than_points(study: Path, invoke: Invoke, calls: Path) -> None:
    asked = ["slurm", "--study", str(study), "--nodes", "4", "--mpi", "pmix", "--shards", "3"]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert (
        "warning: 4 points can be played at a time, but the study has 2 in each of 3 shards; ask for fewer ranks" in result.stderr
    )
    assert "warning" not in CliRunner().invoke(app, [*asked, "--ranks-per-run", "2"], catch_exceptions=False).stderr


STUDY_MISTAKES = {
    "array": (["--array", "10,20"], "--array: does not go with --study; --shards N makes an array of a study"),
    "out": (["--out", "runs/x"], "--out: does not go with --study; a study is played in its own directory"),
    "setting": (
        ["-s", "rounds=5"],
        "-s rounds=5: the points of a study have their configuration already; only keys of comm can be set",
    ),
    "shards": (["--shards", "7"], "has 6 points only; give at most 6"),
    "no shards": (["--shards", "0"], "--shards: must be at least 1, not 0"),
    "no ranks": (["--ranks-per-run", "0"], "--ranks-per-run: must be at least 1, not 0"),
    "serial": (["--nodes", "2", "-s", "comm.backend=serial"], "'serial' is one process, and this job has 2 tasks"),
}


@pytest.mark.parametrize("mistake", STUDY_MISTAKES)
def test_mistakes_about_studies(
    mistake: str, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = STUDY_MISTAKES[mistake]
    code, error = call(["slurm", "--study", str(study), *arguments], monkeypatch, capsys)
    assert (code, error.count(message)) == (2, 1), error


def test_neither_a_run_nor_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call(["slurm", "--nodes", "2"], monkeypatch, capsys)
    assert (code, error.count("slurm: needs the CONFIG of a run, or the directory of a study")) == (2, 1), error
    code, error = call(["slurm", "--study", str(tmp_path)], monkeypatch, capsys)
    assert (code, error.count(f"{tmp_path}: holds no study (looked for {tmp_path}/study.yaml)")) == (2, 1), error

# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: syntax, missing prerequisites, restarts, and the commands they build."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"])
# Programs that the scripts need; Python is left out on purpose.
TOOLS = ("bash", "dirname", "cksum", "cat", "rm", "env")


@pytest.fixture
def machine(tmp_path):
    """A copy of the scripts in `tmp_path/repo` and a PATH with no Python on it."""
    repo, tools = tmp_path / "repo", tmp_path / "bin"
    shutil.copytree(ROOT / "launch", repo / "launch")
    shutil.copy(ROOT / "pyproject.toml", repo)
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    return repo, tools


def script(path: Path, text: str) -> None:
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


def launch(machine, name: str, *arguments: str) -> subprocess.CompletedProcess:
    repo, tools = machine
    env = {"PATH": str(tools), "HOME": str(repo.parent)}
    command = [str(tools / "bash"), str(repo / "launch" / name), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def old_python(tools: Path, version: str = "3.9.2") -> None:
    script(tools / "python3", f'case "$2" in *version_info*) exit 1;; *) echo {version};; esac\n')


def new_python(tools: Path, ensurepip: bool = True, pip_status: int = 0) -> None:
    """A fake Python of a supported version; its venv has a pip that logs its arguments."""
    (tools / "mkdir").symlink_to(shutil.which("mkdir"))
    (tools / "cp").symlink_to(shutil.which("cp"))
    script(
        tools / "python3",
        'here=$(dirname "$0")\n'
        'case "$*" in\n'
        '*"-m venv --clear"*) mkdir -p "$4/bin"; cp "$here/inner" "$4/bin/python";\n'
        '    cp "$here/demo" "$4/bin/jaxasa";;\n'
        f"*ensurepip*) exit {0 if ensurepip else 1};;\n"
        "*platform*) echo 3.12.1;;\n"
        "*) exit 0;;\n"
        "esac\n",
    )
    log = tools / "pip.log"
    script(
        tools / "inner",
        f'case "$*" in *"-m pip install"*) echo "$*" >>"{log}"; exit {pip_status};; esac\n',
    )
    script(
        tools / "demo",
        'echo "ran $*"; echo "platforms $JAX_PLATFORMS"; echo "preloads $LD_PRELOAD"\n',
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(path):
    command = ["shellcheck", "-s", "bash", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["local.sh", "test.sh"])
def test_missing_python_is_reported(machine, name):
    done = launch(machine, name)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; no python3 is installed" in done.stderr
    assert "apt install python3 python3-venv" in done.stderr


def test_old_python_is_reported(machine):
    old_python(machine[1])
    done = launch(machine, "local.sh")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; python3 is 3.9.2" in done.stderr


def test_newer_python_is_preferred_over_old_python3(machine):
    tools = machine[1]
    new_python(tools)
    (tools / "python3").rename(tools / "python3.12")
    old_python(tools)
    done = launch(machine, "local.sh")
    assert done.returncode == 0, done.stderr
    assert "python3.12" in done.stderr


def test_missing_venv_module_is_reported(machine):
    new_python(machine[1], ensurepip=False)
    done = launch(machine, "local.sh")
    assert done.returncode == 1
    assert "no venv module" in done.stderr and "apt install python3-venv" in done.stderr
    assert not (machine[0] / ".venv").exists()


def test_failed_installation_is_retried(machine):
    tools = machine[1]
    new_python(tools, pip_status=1)
    for attempt in (1, 2):
        done = launch(machine, "local.sh")
        assert done.returncode == 1
        assert "pip could not install" in done.stderr and "network" in done.stderr
        assert "ran" not in done.stdout
        assert len((tools / "pip.log").read_text().splitlines()) == attempt


def test_installation_is_repeated_only_if_pyproject_changes(machine):
    repo, tools = machine
    new_python(tools)
    log = tools / "pip.log"
    done = launch(machine, "local.sh", "--gin_file", "gin/run/smoke.gin")
    assert done.returncode == 0, done.stderr
    assert f"ran demo --workdir {repo}/runs/demo --gin_file gin/run/smoke.gin" in done.stdout
    assert launch(machine, "local.sh").returncode == 0
    assert len(log.read_text().splitlines()) == 1
    with open(repo / "pyproject.toml", "a") as file:
        file.write("\n# changed\n")
    assert launch(machine, "local.sh").returncode == 0
    assert len(log.read_text().splitlines()) == 2


def test_jax_platforms_of_the_caller_is_kept(machine):
    new_python(machine[1])
    assert "platforms cpu" in launch(machine, "local.sh").stdout
    script(machine[1] / "tpu", 'JAX_PLATFORMS=tpu exec bash "$@"\n')
    repo, tools = machine
    done = subprocess.run(
        [tools / "bash", tools / "tpu", repo / "launch/local.sh"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert "platforms tpu" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD, ldconfig and /proc")
def test_tcmalloc_is_preloaded_if_installed(machine, tmp_path):
    repo, tools = machine
    new_python(tools)
    # An existing library stands in for tcmalloc: the loader complains about missing files.
    maps = Path("/proc/self/maps").read_text().splitlines()
    math = next(line.split()[-1] for line in maps if "/libm" in line)
    libz = "\tlibz.so.1 (libc6,x86-64) => /lib/libz.so.1\n"
    listing = tmp_path / "listing"
    script(tools / "ldconfig", f'cat "{listing}"\n')
    listing.write_text(libz)
    assert "preloads \n" in launch(machine, "local.sh").stdout
    listing.write_text(libz + f"\tlibtcmalloc_minimal.so.4 (libc6,x86-64) => {math}\n")
    done = launch(machine, "local.sh")
    assert f"preloads {math}\n" in done.stdout and not done.stderr
    script(tools / "own", f'export LD_PRELOAD="{math} {math}"; exec bash "$@"\n')
    own = [tools / "bash", tools / "own", repo / "launch/local.sh"]
    done = subprocess.run(own, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert f"preloads {math} {math}\n" in done.stdout


JOBS = {
    "tpu_vm.sh": ("gcloud", ["--tpu", "pod", "--zone", "us-east5-a", "--pause", "0"]),
    "gke.sh": ("xpk", ["--cluster", "c", "--workload", "w", "--tpu", "v5p-8", "--image", "i:1"]),
    "slurm.sh": ("sbatch", ["--nodes", "2", "--gpus", "4", "--time", "1:00:00"]),
}
ARGUMENTS = [
    "train",
    "sft",
    "--workdir",
    "/a b",
    "--gin.Sounds.bank='folder:x'",
    "--gin.Run.seed=3",
]


@pytest.fixture
def cluster(tmp_path):
    """`cluster(script, *arguments, codes=())`: runs a script with fakes of the tools it calls.

    Returns (done, calls), the arguments of each call. The fakes exit with `codes` in order, then 0.
    """
    tools, log, codes_file = tmp_path / "bin", tmp_path / "calls", tmp_path / "codes"
    tools.mkdir()
    for name in ("gcloud", "xpk", "sbatch", "srun", "scontrol"):
        script(
            tools / name,
            f'printf "%s\\0" {name} "$@" >>"{log}"; echo >>"{log}"\n'
            f'read -r code rest <"{codes_file}"; echo "$rest" >"{codes_file}"\n'
            'exit "${code:-0}"\n',
        )

    def run(name, *arguments, codes=(), **env):
        codes_file.write_text(" ".join(map(str, codes)) + "\n")
        log.write_text("")
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path)} | env
        command = ["bash", str(ROOT / "launch" / name), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done, [line.split("\0")[:-1] for line in log.read_text().splitlines()]

    return run


def inner(call: list[str]) -> list[str]:
    """The words of the command that the cluster would run, as its shell would read them."""
    line = next(w for w in call if w.startswith(("--command=", "--wrap="))).partition("=")[2]
    return shlex.split(line)


@pytest.mark.parametrize("name", JOBS)
def test_job_passes_arguments_and_dry_run_only_prints(cluster, name):
    tool, options = JOBS[name]
    dry, calls = cluster(name, *options, "--dry_run", "--", *ARGUMENTS)
    assert dry.returncode == 0 and not calls and not dry.stderr
    done, calls = cluster(name, *options, "--", *ARGUMENTS)
    assert done.returncode == 0 and len(calls) == 1 and calls[0][0] == tool
    # The printed command equals the command that is run.
    assert shlex.split(dry.stdout) == shlex.split(done.stdout) == calls[0]
    words = inner(calls[0])
    assert words[-len(ARGUMENTS) :] == ARGUMENTS
    if name != "slurm.sh":
        assert "JAXASA_COORDINATOR=auto" in words
    expected = {
        "tpu_vm.sh": {"pod", "--zone=us-east5-a", "--worker=all"},
        "gke.sh": {"--max-restarts=5", "--restart-on-exit-codes=75", "--tpu-type=v5p-8"},
        "slurm.sh": {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=1:00:00"},
    }
    assert expected[name] <= set(calls[0])


@pytest.mark.parametrize(
    "codes, times, code",
    [((75, 75), 3, 0), ((137, 2), 2, 2), ((1,), 1, 1), ((3,), 1, 3), ((75,) * 9, 3, 75)],
)
def test_tpu_vm_restarts_resumable_runs(cluster, codes, times, code):
    options = [*JOBS["tpu_vm.sh"][1], "--restarts", "2"]
    done, calls = cluster("tpu_vm.sh", *options, "--", *ARGUMENTS, codes=codes)
    assert len(calls) == times and done.returncode == code
    assert all(call == calls[0] for call in calls)
    assert code == 0 or f"exit code {code}" in done.stderr


@pytest.mark.parametrize(
    "code, before, again",
    [(0, 0, False), (75, 0, True), (134, 4, True), (75, 5, False), (2, 0, False)],
)
def test_slurm_requeues_resumable_jobs(cluster, code, before, again):
    """Runs the command that was passed to sbatch."""
    _, [call] = cluster("slurm.sh", *JOBS["slurm.sh"][1], "--", *ARGUMENTS)
    bash, path, *rest = inner(call)
    assert bash == "bash" and Path(path) == ROOT / "launch/slurm.sh"
    env = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(before)}
    done, calls = cluster("slurm.sh", *rest, codes=(code,), **env)
    assert calls[0][0] == "srun" and calls[0][-len(ARGUMENTS) :] == ARGUMENTS
    assert "--kill-on-bad-exit=1" in calls[0]
    assert not any(word.startswith("--cpus-per-task") for word in calls[0])
    assert calls[1:] == ([["scontrol", "requeue", "17"]] if again else [])
    assert done.returncode == (0 if again else code)


def test_srun_is_given_the_cores_of_the_job(cluster):
    """SLURM 22.05 and later: srun does not inherit sbatch's --cpus-per-task."""
    arguments = ["--inside", "5", *ARGUMENTS]
    done, calls = cluster("slurm.sh", *arguments, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="8")
    assert done.returncode == 0 and len(calls) == 1
    assert calls[0][0] == "srun" and calls[0][-len(ARGUMENTS) :] == ARGUMENTS
    assert "--cpus-per-task=8" in calls[0][: -len(ARGUMENTS) - 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cluster", "c", "--", "train"], "--workload is missing"),
        (["--clutser", "c", "--", "train"], "--clutser: no such option, expected one of --cluster"),
        (["--cluster", "c", "train", "sft"], "train: expected an option, or --"),
        (["--cluster", "c"], "expected -- and the arguments of jaxasa"),
        (["--cluster"], "--cluster: expected a value"),
    ],
)
def test_invalid_options_are_named(cluster, arguments, message):
    done, calls = cluster("gke.sh", *arguments)
    assert done.returncode == 2 and not calls
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_scripts_contain_no_machine_specific_paths():
    home = os.path.expanduser("~")
    for path in SCRIPTS:
        text = path.read_text()
        assert str(ROOT) not in text and sys.prefix not in text and f"{home}/" not in text

"""The launch scripts: syntax, and what they say on machines that lack something."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"])
# What the scripts themselves need; Python is left out on purpose.
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
    """A Python that is new enough; `-m venv` makes one whose pip logs its arguments."""
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
    script(tools / "demo", 'echo "ran $*"; echo "platforms $JAX_PLATFORMS"\n')


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_syntax(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(path):
    done = subprocess.run(["shellcheck", "-x", "-s", "bash", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["local.sh", "test.sh"])
def test_no_python(machine, name):
    done = launch(machine, name)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; no python3 is installed" in done.stderr
    assert "apt install python3 python3-venv" in done.stderr


def test_old_python(machine):
    old_python(machine[1])
    done = launch(machine, "local.sh")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; python3 is 3.9.2" in done.stderr


def test_newer_name_beside_an_old_python3(machine):
    repo, tools = machine
    new_python(tools)
    (tools / "python3").rename(tools / "python3.12")
    old_python(tools)
    done = launch(machine, "local.sh")
    assert done.returncode == 0, done.stderr
    assert "python3.12" in done.stderr


def test_no_venv_module(machine):
    new_python(machine[1], ensurepip=False)
    done = launch(machine, "local.sh")
    assert done.returncode == 1
    assert "no venv module" in done.stderr and "apt install python3-venv" in done.stderr
    assert not (machine[0] / ".venv").exists()


def test_pip_fails_and_is_tried_again(machine):
    repo, tools = machine
    new_python(tools, pip_status=1)
    for attempt in (1, 2):
        done = launch(machine, "local.sh")
        assert done.returncode == 1
        assert "pip could not install" in done.stderr and "network" in done.stderr
        assert "ran" not in done.stdout
        assert len((tools / "pip.log").read_text().splitlines()) == attempt


def test_installs_once_until_pyproject_changes(machine):
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


def test_the_callers_platform_is_kept(machine):
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


def test_no_path_of_one_machine_in_the_scripts():
    home = os.path.expanduser("~")
    for path in SCRIPTS:
        text = path.read_text()
        assert str(ROOT) not in text and sys.prefix not in text and f"{home}/" not in text

"""The shape of the package: who imports whom, which library stays where, how long files are."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxasa"
# The model in torch is copied into exported folders and runs there, without jaxasa.
TWIN = PACKAGE / "hf" / "torch"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if TWIN not in path.parents)

# A room imports from its own level or from below. Files at the top of the package are named.
LEVELS = {
    "config": 0,
    "core": 1,
    "parallel": 2,
    "acoustics": 2,
    "data": 3,
    "models": 4,
    "train": 5,
    "hf": 5,
    "viz": 6,
    "inference": 7,
    "stages": 7,
    "bench": 8,
    "plan": 8,
    "speed": 8,
    "pipeline": 9,
    "cli": 10,
    "__main__": 11,
}
# Rooms that stay apart, whatever their levels.
APART = {("train", "models"), ("train", "data")}
ONLY_IN = {"gin": ("config/gin_files.py",), "flax": ("models/",), "orbax": ("train/checkpoint.py",)}
BANNED = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports; `from a import b` counts as a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_files_were_found():
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downward(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in LEVELS, f"{here} has no level in this test"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jaxasa" and len(parts) > 1 and parts[1] != here:
            assert LEVELS[parts[1]] <= LEVELS[here], f"{path} imports {name}"
            assert (here, parts[1]) not in APART, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_libraries_stay_where_they_belong(path):
    short = path.relative_to(PACKAGE).as_posix()
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & BANNED, f"{short} imports {tops & BANNED}"
    for library, places in ONLY_IN.items():
        if library in tops:
            assert short.startswith(places), f"{short} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_eval_no_exec_no_pickled_arrays(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            for keyword in node.keywords:
                assert keyword.arg != "allow_pickle", f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted(TWIN.glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda p: p.name,
)
def test_files_are_rooms_of_at_most_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_the_model_in_torch_stands_alone():
    """It imports what its readers have, and nothing of jaxasa imports it."""
    files = sorted(TWIN.glob("*.py"))
    assert len(files) > 3
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level:
                # The only form that transformers follows: from .name import something.
                assert node.level == 1 and (TWIN / f"{node.module}.py").is_file()
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [] if names else [alias.name for alias in node.names]
                tops = {name.split(".")[0] for name in names}
                assert tops <= {"torch", "transformers", "numpy", *sys.stdlib_module_names}
    for path in FILES:
        assert not any(name.startswith("jaxasa.hf.torch") for name in imports(path))


def test_every_library_is_declared():
    """What the package imports is in pyproject.toml, and nothing is there for no reason."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cut = str.maketrans("<>=[;~! ", "\n" * 8)

    def names(requirements) -> set[str]:
        return {d.translate(cut).split("\n")[0].lower().replace("_", "-") for d in requirements}

    declared = names(project["dependencies"])
    extras = names(d for needs in project["optional-dependencies"].values() for d in needs)
    used = {name.split(".")[0] for path in FILES for name in imports(path)}
    assert "torch" not in used and "transformers" not in used
    used -= {"jaxasa", *sys.stdlib_module_names}
    owners = packages_distributions()
    provided = set()
    for name in sorted(used):
        # Namespace packages (orbax) have several owners; an extra may not be installed.
        owned = {o.lower().replace("_", "-") for o in owners.get(name, [name])}
        assert owned & (declared | extras), f"{name} ({owned}) is imported and not declared"
        provided |= owned
    assert declared <= provided, f"declared, never imported: {declared - provided}"


def test_help_does_not_start_jax():
    """`--help` answers at once: the command line imports no heavy library before a verb runs."""
    code = (
        "import sys, jaxasa.cli\n"
        "heavy = {'jax', 'flax', 'grain', 'orbax', 'librosa', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Structure of the package: import directions, cycles, where libraries are used, file lengths."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxasa"
# The PyTorch model is copied into exported folders and runs there, without jaxasa.
TORCH_MODEL = PACKAGE / "hf" / "torch"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if TORCH_MODEL not in path.parents)

# A package imports from packages of its own level or below.
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
    "api": 9,
    "pipeline": 9,
    "cli": 10,
    "__main__": 11,
}
# (importer, imported) pairs that are forbidden whatever the levels.
FORBIDDEN = {("train", "models"), ("train", "data")}
ONLY_IN = {"gin": ("config/gin_files.py",), "flax": ("models/",), "orbax": ("train/checkpoint.py",)}
BANNED = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MAX_LINES = 600  # a longer file holds more than one thing


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, lazily too; `from a import b` counts as a.b."""
    names = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def package(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_point_downward():
    assert len(FILES) > 100
    upward = []
    for path in FILES:
        importer = package(path)
        if importer == "__init__":
            continue
        for name in imports(path):
            imported = name.split(".")[1] if name.startswith("jaxasa.") else importer
            if imported != importer and (
                LEVELS[imported] > LEVELS[importer] or (importer, imported) in FORBIDDEN
            ):
                upward.append(f"{short(path)} imports {name}")
    assert not upward


def test_no_import_cycles_between_files():
    """Lazy imports count; of `from a import b` the module a.b counts if there is one, else a."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }

    def module_of(name: str) -> str | None:
        return next((m for m in (name, name.rpartition(".")[0]) if m in modules), None)

    graph = {
        module: {module_of(name) for name in imports(path)} - {module, None}
        for module, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_libraries_stay_where_they_belong():
    misplaced = []
    for path in FILES:
        libraries = {name.split(".")[0] for name in imports(path)}
        misplaced += [f"{short(path)} imports {library}" for library in libraries & BANNED]
        misplaced += [
            f"{short(path)} imports {library}"
            for library, places in ONLY_IN.items()
            if library in libraries and not short(path).startswith(places)
        ]
    assert not misplaced


def test_no_eval_no_exec_no_pickled_arrays():
    calls = []
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                options = {keyword.arg for keyword in node.keywords}
                if name in ("eval", "exec") or "allow_pickle" in options:
                    calls.append(f"{short(path)}:{node.lineno}")
    assert not calls


def test_files_are_short_and_licensed():
    paths = [path for top in ("jaxasa", "tests", ".ci") for path in (ROOT / top).rglob("*.py")]
    texts = {str(path): path.read_text(encoding="utf-8") for path in paths}
    lengths = {path: len(text.splitlines()) for path, text in texts.items()}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}
    header = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [path for path, text in texts.items() if not text.startswith(header)] == []


def test_torch_model_is_self_contained():
    """It imports only torch, transformers, numpy and its own files; jaxasa does not import it."""
    files = sorted(TORCH_MODEL.glob("*.py"))
    assert len(files) > 3
    for path in files:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                # The only form that transformers follows: from .name import something.
                assert node.level == 1 and (TORCH_MODEL / f"{node.module}.py").is_file()
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [] if names else [alias.name for alias in node.names]
                tops = {name.split(".")[0] for name in names}
                assert tops <= {"torch", "transformers", "numpy", *sys.stdlib_module_names}
    for path in FILES:
        assert not any(name.startswith("jaxasa.hf.torch") for name in imports(path))


def test_dependencies_match_imports():
    """Every imported library is declared in pyproject.toml, and every declared one is imported."""
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


def test_help_imports_no_heavy_library():
    """`--help` is fast: the command line imports heavy libraries only when a command runs."""
    code = (
        "import sys, jaxasa.cli.main\n"
        "heavy = {'jax', 'flax', 'grain', 'orbax', 'librosa', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

# SPDX-License-Identifier: Apache-2.0
"""Which jaxasa made a file: "made_by" of checkpoints, data sets, suites, results and exports.

It is for people who look for the origin of a result. No digest and no comparison of settings may
depend on it: a data set or a checkpoint of another version is still used.
"""

import functools
import importlib.metadata
import platform
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"


@functools.cache
def made_by() -> dict[str, str]:
    """{"version", "commit", "jax", "python"}: of jaxasa, its git checkout, jax, and Python.

    commit: 40 hexadecimal digits; "unknown" if jaxasa is not run from a git checkout.
    """
    return {
        "version": version(),
        "commit": commit(_ROOT),
        "jax": _installed("jax"),
        "python": platform.python_version(),
    }


def version() -> str:
    return _installed("jaxasa")


def commit(root: Path) -> str:
    """The commit that is checked out in `root`, read without git; "unknown" if there is none."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a worktree or submodule: "gitdir: PATH"
            folder = root / folder.read_text("utf-8").removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = folder / "commondir"  # refs of a worktree lie in the main repository
        refs = folder / common.read_text("utf-8").strip() if common.is_file() else folder
        if (refs / name).is_file():
            return (refs / name).read_text("utf-8").strip()
        for line in (refs / "packed-refs").read_text("utf-8").splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
    except (OSError, UnicodeDecodeError):
        pass
    return UNKNOWN


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN

# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from jaxasa.core import provenance


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def test_names_versions():
    made_by = provenance.made_by()
    assert list(made_by) == ["version", "commit", "jax", "python"]
    assert made_by["python"] == "{}.{}.{}".format(*sys.version_info)
    assert made_by["jax"][0].isdigit()


def test_commit_of_a_branch_of_packed_refs_and_of_a_detached_head(checkout):
    expected = git(checkout, "rev-parse", "HEAD")
    assert len(expected) == 40 and provenance.commit(checkout) == expected
    git(checkout, "pack-refs", "--all")
    assert not any(p.is_file() for p in (checkout / ".git/refs/heads").iterdir())
    assert provenance.commit(checkout) == expected
    git(checkout, "checkout", "-q", "--detach")
    assert provenance.commit(checkout) == expected


def test_commit_of_a_worktree(checkout, tmp_path):
    git(checkout, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    expected = git(tmp_path / "tree", "rev-parse", "HEAD")
    assert provenance.commit(tmp_path / "tree") == expected != provenance.commit(checkout)


def test_commit_is_unknown_outside_a_checkout(tmp_path):
    assert provenance.commit(tmp_path) == "unknown"
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")  # without a commit yet
    assert provenance.commit(tmp_path) == "unknown"


def test_jax_is_not_imported():
    code = "import sys; from jaxasa.core import provenance; provenance.made_by(); "
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import re

import pytest

from jaxasa.config import ConfigError
from jaxasa.core import files


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_path_writes_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_atomic_path_replaces_a_folder(tmp_path):
    path = tmp_path / "a"
    for text in ("old", "new"):
        with files.atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / text).write_text("")
    assert names(path) == ["new"] and names(tmp_path) == ["a"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_atomic_path_keeps_the_old_one_after_an_error(tmp_path, is_folder):
    path = tmp_path / "a"
    with files.atomic_path(path) as temporary:
        temporary.mkdir() if is_folder else temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.mkdir() if is_folder else temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.is_dir() if is_folder else path.read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EPERM])
@pytest.mark.parametrize("is_old_there", [False, True])
def test_file_system_that_renames_no_folders(tmp_path, monkeypatch, code, is_old_there):
    """As Cloud Storage FUSE does without a hierarchical namespace; it renames files."""
    replace = os.replace

    def replace_files(source, target):
        if os.path.isdir(source):
            raise OSError(code, os.strerror(code), source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_files)
    files.atomic_write_text(tmp_path / "a.txt", "file")
    path = tmp_path / "a"
    if is_old_there:
        path.mkdir()
        (path / "old").write_text("")
    message = f"^{re.escape(str(path))}: its file system cannot rename folders .*rename-dir-limit$"
    with pytest.raises(ConfigError, match=message), files.atomic_path(path) as temporary:
        temporary.mkdir()
    with (
        pytest.raises(ConfigError, match=message),
        files.atomic_folder(path, lambda _: True) as folder,
    ):
        (folder / "new").write_text("")
    assert names(tmp_path) == (["a", "a.txt"] if is_old_there else ["a.txt"])
    assert not is_old_there or names(path) == ["old"]


def test_atomic_path_restores_a_folder_if_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("")
    replace = os.replace

    def fail_at_the_second(source, target):
        if str(source).endswith(".tmp"):
            raise PermissionError
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    with pytest.raises(PermissionError), files.atomic_path(path) as temporary:
        temporary.mkdir()
    assert names(path) == ["old"] and names(tmp_path) == ["a"]


def test_temporary_names_differ(tmp_path):
    """Hosts that share a file system may write the same file at once, with equal process ids."""
    path = tmp_path / "a"
    with files.atomic_path(path) as one, files.atomic_path(path) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert path.read_text() == "1"


def test_text_and_json(tmp_path):
    files.atomic_write_text(tmp_path / "a", "5 m², 3 °\n")
    assert (tmp_path / "a").read_bytes() == "5 m², 3 °\n".encode()
    files.atomic_write_json(tmp_path / "b", {"x": [1]})
    assert json.loads((tmp_path / "b").read_text()) == {"x": [1]}


def test_atomic_folder_replaces_only_what_it_may(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "thesis.txt").write_text("")
    for target in (path, path / "thesis.txt"):
        with pytest.raises(ConfigError, match="expected a new folder"):
            with files.atomic_folder(target, lambda _: False):
                raise AssertionError("must not be entered")
    with files.atomic_folder(path, lambda _: True) as draft:
        (draft / "new").write_text("")
    assert names(path) == ["new"]


def test_locks(tmp_path):
    with files.lock(tmp_path):
        with files.try_lock(tmp_path) as is_locked:
            assert not is_locked
        with pytest.raises(ConfigError, match="another jaxasa command is at work in it"):
            with files.lock(tmp_path):
                raise AssertionError("must not be entered")
    with files.lock(tmp_path, shared=True), files.lock(tmp_path, shared=True):
        with files.try_lock(tmp_path) as is_locked:
            assert not is_locked
    with files.try_lock(tmp_path) as is_locked:
        assert is_locked

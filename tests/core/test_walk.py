# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxasa.core.walk import list_files
from jaxasa.data import corpora, dcase_csv


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("0,0,0,10,0\n")
    return path


def test_linked_folders_are_entered_and_circles_end(tmp_path):
    touch(tmp_path / "real/dog/a.wav")
    touch(tmp_path / "real/csv/a.csv")
    root = tmp_path / "set"
    touch(root / "cat/b.wav")
    (root / "dog").symlink_to(tmp_path / "real/dog")
    (root / "cat/again").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "csv").symlink_to(tmp_path / "real/csv")
    names = [path.relative_to(root).as_posix() for path in list_files(root)]
    assert names == ["cat/b.wav", "csv/a.csv", "dog/a.wav"]
    assert [file.name for file in corpora.list_folder(root)] == ["cat/b.wav", "dog/a.wav"]
    assert list(dcase_csv.read_all(root)) == ["a.csv"]


@pytest.mark.parametrize("name", ["nowhere", "a.wav"])
def test_no_folder_has_no_files(tmp_path, name):
    touch(tmp_path / "a.wav")
    assert list_files(tmp_path / name) == []

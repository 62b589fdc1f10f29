# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxasa.config import ConfigError
from jaxasa.data import corpora


def test_folder_recordings_are_files_or_subfolders(tmp_path):
    for name in ("dog/a.wav", "dog/b/1.ogg", "dog/b/2.ogg", "cat/a.FLAC", "cat/notes.txt", "x.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    got = {(r.name, r.labels, r.recording_id, r.open()) for r in corpora.list_folder(tmp_path)}
    assert got == {
        ("dog/a.wav", ("dog",), "dog/a.wav", tmp_path / "dog/a.wav"),
        ("dog/b/1.ogg", ("dog",), "dog/b", tmp_path / "dog/b/1.ogg"),
        ("dog/b/2.ogg", ("dog",), "dog/b", tmp_path / "dog/b/2.ogg"),
        ("cat/a.FLAC", ("cat",), "cat/a.FLAC", tmp_path / "cat/a.FLAC"),
    }


def test_esc50_recordings_are_freesound_recordings(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-100032-B-0.wav,1,0,dog,True,100032,B\n"
    )
    got = corpora.list_esc50(tmp_path)
    assert [r.recording_id for r in got] == ["100032", "100032"] and got[0].labels == ("dog",)
    assert got[1].open() == tmp_path / "audio/1-100032-B-0.wav"


def test_fsd50k_has_labels_from_specific_to_broad(tmp_path):
    (tmp_path / "FSD50K.ground_truth").mkdir()
    (tmp_path / "FSD50K.ground_truth/dev.csv").write_text(
        'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Music","/m/1,/m/2,/m/3",train\n'
    )
    (tmp_path / "FSD50K.ground_truth/eval.csv").write_text("fname,labels,mids\n37199,Bark,/m/4\n")
    first, second = corpora.list_fsd50k(tmp_path)
    assert first.labels == ("Electric_guitar", "Guitar", "Music")
    assert first.open() == tmp_path / "FSD50K.dev_audio/64760.wav"
    assert second.open() == tmp_path / "FSD50K.eval_audio/37199.wav"
    assert second.recording_id == "37199"


def test_manifest_paths_are_relative_to_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,class,recording_id\na/b.wav,dog,7\n")
    (only,) = corpora.list_manifest(path)
    assert (only.labels, only.recording_id, only.open()) == (("dog",), "7", tmp_path / "a/b.wav")


def test_missing_files_and_columns_are_reported(tmp_path):
    for lister in (
        corpora.list_folder,
        corpora.list_esc50,
        corpora.list_fsd50k,
        corpora.list_manifest,
    ):
        with pytest.raises(ConfigError, match="nowhere"):
            lister(tmp_path / "nowhere")
    path = tmp_path / "list.csv"
    path.write_text("path,class\na.wav,dog\n")
    with pytest.raises(ConfigError, match="path, class, recording_id"):
        corpora.list_manifest(path)
    path.write_text("path,class,take\na.wav,dog,A\n")
    with pytest.raises(ConfigError, match="ESC-50's take, the letter of a fragment, is not that"):
        corpora.list_manifest(path)
    path.write_text("path,class,recording_id\na.wav,dog,1\nb.wav,,2\n")
    with pytest.raises(ConfigError, match="list.csv:3"):
        corpora.list_manifest(path)

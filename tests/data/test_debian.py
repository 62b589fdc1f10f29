# SPDX-License-Identifier: Apache-2.0
import struct
import zipfile
import zlib

import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.data import debian
from jaxasa.data.debian import SoundsUnavailable
from jaxasa.data.decode import UnusableSound, read_mono


def riff(samples=1600):
    data = (np.sin(np.arange(samples)) * 9000).astype("<i2").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def rcc(files, version=3):
    """A Qt resource file: {path: (bytes, flags)}, every folder a node of its own."""
    tree, names, blobs = [], b"", b""

    def name_of(text):
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    def add(level):  # breadth first: children of a node lie side by side
        nonlocal blobs
        waiting = [(level, 0)]
        tree.append(None)
        heads = [0]
        while waiting:
            folder, node = waiting.pop(0)
            first = len(tree)
            tree[node] = struct.pack(">IHII", heads[node], 2, len(folder), first)
            for text, inside in folder.items():
                heads.append(name_of(text))
                if isinstance(inside, dict):
                    waiting.append((inside, len(tree)))
                    tree.append(None)
                else:
                    content, flags = inside
                    blob = content
                    if flags & 1:
                        blob = struct.pack(">I", len(content)) + zlib.compress(content)
                    tree.append(struct.pack(">IHHHI", heads[-1], flags, 0, 0, len(blobs)))
                    blobs += struct.pack(">I", len(blob)) + blob

    nested = {}
    for path, content in files.items():
        level = nested
        *folders, last = path.split("/")
        for part in folders:
            level = level.setdefault(part, {})
        level[last] = content
    add(nested)
    pad = b"" if version == 1 else bytes(8)
    nodes = b"".join(node + pad for node in tree)
    start = 20 + 4 * (version >= 3)
    offsets = (start, start + len(nodes), start + len(nodes) + len(blobs))
    head = struct.pack(">4sIIII", b"qres", version, *offsets) + bytes(4 * (version >= 3))
    return head + nodes + blobs + names


def cat(entries):
    table, body = b"", b""
    for label, content in entries:
        entry = bytes([len(label)]) + label + content
        table += struct.pack("<II", 8 * len(entries) + len(body), len(entry))
        body += entry + b"trailing name\0"
    return table + body


@pytest.mark.parametrize("version", [1, 2, 3])
def test_rcc_gives_each_member_its_own_bytes(tmp_path, version):
    path = tmp_path / "a.rcc"
    files = {"app/sounds/dog.wav": (riff(), 1), "app/sounds/é.ogg": (b"plain", 0), "top": (b"t", 1)}
    path.write_bytes(rcc(files, version))
    for member, (content, _) in files.items():
        assert debian.read_rcc(path, member) == content


def test_rcc_errors_give_the_reason(tmp_path):
    path = tmp_path / "a.rcc"
    whole = rcc({"a/b": (riff(), 1), "a/z": (b"x", 4)})
    path.write_bytes(whole)
    with pytest.raises(UnusableSound, match="no such member"):
        debian.read_rcc(path, "a/c")
    with pytest.raises(UnusableSound, match="Zstandard"):
        debian.read_rcc(path, "a/z")
    for broken in (b"nope" + whole[4:], whole[:30], b"", whole.replace(b"x\x9c", b"\0\0")):
        path.write_bytes(broken)
        with pytest.raises(UnusableSound, match="rcc"):
            debian.read_rcc(path, "a/b")


def test_rcc_tree_with_a_cycle_is_refused(tmp_path):
    path = tmp_path / "a.rcc"
    data = bytearray(rcc({"a/b": (b"x", 0)}))
    struct.pack_into(">II", data, 24 + 22 + 6, 1, 0)  # folder "a": its child is the root
    path.write_bytes(data)
    with pytest.raises(UnusableSound, match="cycle"):
        debian.read_rcc(path, "a/b")


def test_cat_entries_skip_labels_and_trailing_names(tmp_path):
    path = tmp_path / "a.cat"
    path.write_bytes(cat([(b"first, CC0", riff(800)), (b"", riff(1600)), (b"text", b"no sound")]))
    assert debian.read_cat(path, 0) == riff(800)
    assert len(read_mono(debian.read_cat(path, 1))) == 1600
    for entry, reason in ((2, "cat"), (3, "no entry 3"), (-1, "no entry")):
        with pytest.raises(UnusableSound, match=reason):
            debian.read_cat(path, entry)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnusableSound, match="cat"):
        debian.read_cat(path, 0)


def test_zip_member_and_its_errors(tmp_path):
    path = tmp_path / "a.pk3"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sound/a.wav", riff())
    assert debian.read_zip(path, "sound/a.wav") == riff()
    with pytest.raises(UnusableSound, match="zip"):
        debian.read_zip(path, "sound/b.wav")
    path.write_bytes(b"junk")
    with pytest.raises(UnusableSound, match="zip"):
        debian.read_zip(path, "sound/a.wav")


def test_index_lists_files_of_nine_packages_then_training_only_files():
    rows = debian.read_index()
    assert [row["split"] for row in rows] == [""] * 951 + ["train"] * (len(rows) - 951)
    own, more = ({row["package"] for row in part} for part in (rows[:951], rows[951:]))
    assert len(own) == 9 and own.isdisjoint(more)
    assert all(row["recording_id"] and row["licence"] for row in rows)
    assert {row["container"] for row in rows} == {"plain", "zip", "rcc", "cat"}


# A package is a tar of its only sound; apt-get hands it out, dpkg unpacks it.
APT = """#!/bin/sh
echo "$@" >> "$TOOLS/calls"
case "$*" in
*update*) exit 0;;
*Dir::State*) ;;
*) if [ -n "$STALE" ]; then echo "E: Unable to locate package" >&2; exit 100; fi;;
esac
for word in "$@"; do
  case "$word" in minetest-data|lmms-common) touch "${word}_1_all.deb"; done=1;; esac
  case "$word" in scorched3d-data) echo "E: no route to host" >&2; exit 100;; esac
done
"""
DPKG = """#!/bin/sh
name=${2%%_*}
mkdir -p "$3/usr/share/games" && echo sound > "$3/usr/share/$name.wav"
mkdir -p "$3/usr/share/doc" && echo GPL > "$3/usr/share/doc/copyright"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("apt-get", APT), ("dpkg", DPKG)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("TOOLS", str(folder))
    return folder


def test_fetch_reports_failures_and_downloads_the_rest_once(tools, tmp_path):
    store = tmp_path / "store"
    failed = debian.fetch_packages(["lmms-common", "minetest-data", "scorched3d-data"], store)
    assert failed == {"scorched3d-data": "apt-get: no route to host"}
    assert (store / "minetest-data/usr/share/doc/copyright").is_file()
    assert not (store / "minetest-data/usr/share/minetest-data.wav").exists()  # not in the index
    assert sorted(p.name for p in store.iterdir()) == ["lmms-common", "minetest-data"]
    (tools / "calls").unlink()
    assert debian.fetch_packages(["lmms-common", "minetest-data"], store) == {}
    assert not (tools / "calls").exists()


def test_fetch_uses_private_package_lists(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("STALE", "1")
    assert debian.fetch_packages(["minetest-data"], tmp_path / "store") == {}
    calls = (tools / "calls").read_text().splitlines()
    assert any("update" in call and "Dir::State::Lists" in call for call in calls)


def test_unavailable_packages_are_a_one_line_error(tools, tmp_path, monkeypatch):
    with pytest.raises(SoundsUnavailable, match="no route to host") as caught:
        debian.fetch_packages(["scorched3d-data"], tmp_path / "store")
    assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SoundsUnavailable, match="apt-get"):
        debian.list_files(["Door"], tmp_path / "store")


def test_only_packages_with_the_labels_are_fetched(tools, tmp_path):
    listed = debian.list_files(["Organ", "Cymbal / hi-hat"], tmp_path)
    assert {r.labels[0] for r in listed} == {"Organ", "Cymbal / hi-hat"}
    assert "scorched3d" not in (tools / "calls").read_text()
    missing = [r for r in listed if r.package == "lmms-common"]
    with pytest.raises(UnusableSound, match="not in the package"):
        missing[0].open()
    failed = [r for r in listed if r.package == "gcompris-qt-data"]
    with pytest.raises(UnusableSound, match="package gcompris-qt-data"):
        failed[0].open()
    with pytest.raises(ConfigError, match="'Dor'"):
        debian.list_files(["Dor"], tmp_path)


def test_recording_ids_of_two_packages_differ(tools, tmp_path):
    listed = debian.list_files([], tmp_path, with_training_only=True)
    assert {r.recording_id for r in listed if r.labels == ("Typing",)}.isdisjoint(
        {r.recording_id for r in listed if r.package == "openttd-opensfx"}
    )
    assert len({r.name for r in listed}) == len(listed) == len(debian.read_index())
    own = debian.list_files([], tmp_path)
    assert len(own) == 951 and not any(r.training_only for r in own)
    assert {r.name for r in listed if not r.training_only} == {r.name for r in own}


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert debian.cache_folder() == tmp_path / "jaxasa"

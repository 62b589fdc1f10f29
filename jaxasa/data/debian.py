# SPDX-License-Identifier: Apache-2.0
"""Sound files of Debian packages: downloaded with apt-get, unpacked with dpkg, neither as root.

`debian_sounds.csv` lists 1,314 labelled files in 27 packages of Debian 12. The 951 of the first
nine are split into train, dev and test. The others, only in the bank "debian_more", are for
training only, so that the benchmark stays the same. They are in four kinds of containers: plain
files, a zip file, Qt resource files (rcc) and OpenTTD's sound catalogue (cat).
All licences are free, most of them GPL or Creative Commons; packages are downloaded when a bank is
built, and none of their files is in this repository.
"""

import csv
import functools
import importlib.resources
import os
import shutil
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.data.decode import SoundFile, UnusableSound

ZIP_FILE = "usr/share/games/ufoai/base/0snd.pk3"
RCC_FOLDER = "usr/share/gcompris-qt/rcc"
CAT_FILE = "usr/share/games/openttd/baseset/opensfx/opensfx.cat"
FETCH_SECONDS = 600
BANKS = ("debian", "debian_more")


class SoundsUnavailable(ConfigError):
    """The packages are not available on this machine; the procedural bank always is."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/jaxasa` or `~/.cache/jaxasa`, so that two runs download once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxasa"


def read_index() -> list[dict[str, str]]:
    """The rows of debian_sounds.csv: package, container, member, label, recording_id, licence, ...

    Those for training only come last, so that of two duplicates the other one is used.
    """
    text = importlib.resources.files("jaxasa.data").joinpath("debian_sounds.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def list_files(
    labels: Collection[str], folder: Path, with_training_only: bool = False
) -> list[SoundFile]:
    """Lists the files with one of `labels` (all if empty); downloads their packages.

    with_training_only: also those that are for training only.

    Packages are unpacked under `folder`/debian and used again. A file of a package that
    could not be downloaded raises UnusableSound when it is opened. Raises SoundsUnavailable if no
    package could be downloaded, ConfigError for a label that is not in the index.
    """
    rows = [row for row in read_index() if with_training_only or not row["split"]]
    known_labels = {row["label"] for row in rows}
    for label in labels:
        if label not in known_labels:
            raise ConfigError(
                f"Sounds.classes has the label {label!r}, expected one of {sorted(known_labels)}"
            )
    rows = [row for row in rows if not labels or row["label"] in labels]
    failed = fetch_packages(sorted({row["package"] for row in rows}), folder / "debian")
    return [
        SoundFile(
            name=f"{row['package']}:{row['member']}",
            labels=(row["label"],),
            recording_id=f"{row['package']}/{row['recording_id']}",
            open=functools.partial(_open, row, folder / "debian", failed),
            package=row["package"],
            licence=row["licence"],
            training_only=row["split"] == "train",
        )
        for row in rows
    ]


def fetch_packages(packages: Collection[str], folder: Path) -> dict[str, str]:
    """Unpacks each package into `folder`/NAME; returns the failures as {package: reason}.

    Raises SoundsUnavailable if apt-get or dpkg is missing, or no package could be downloaded.
    """
    missing = [p for p in packages if not (folder / p).is_dir()]
    if not missing:
        return {}
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise SoundsUnavailable(f"the debian bank needs {tool}, which is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    failed = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        work = Path(name)
        options = _own_lists(work) if _download(missing, work, []) else []
        for package in missing:
            error = ""
            if not any(work.glob(f"{package}_*.deb")):
                error = _download([package], work, options)
            error = error or _unpack(package, work, folder)
            if error:
                failed[package] = error
    if len(failed) == len(packages):
        reason = next(iter(failed.values()))
        raise SoundsUnavailable(f"no package of the debian bank could be downloaded: {reason}")
    return failed


def _run(command: list[str], folder: Path) -> str:
    """Runs `command` in `folder`; returns "" or why it failed, in one line."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_SECONDS,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"{command[0]}: {error}"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    lines = lines or done.stderr.splitlines() or [f"exit code {done.returncode}"]
    return f"{command[0]}: {lines[0].removeprefix('E:').strip()}"


def _download(packages: list[str], folder: Path, options: list[str]) -> str:
    return _run(["apt-get", "download", "-qq", *options, *packages], folder)


def _own_lists(work: Path) -> list[str]:
    """Options for private package lists: those of a container are often empty, and need root."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
    options += ["-o", "APT::Sandbox::User=root"]
    _run(["apt-get", "update", "-qq", *options], work)
    return options


def _unpack(package: str, work: Path, folder: Path) -> str:
    archives = sorted(work.glob(f"{package}_*.deb"))
    if not archives:
        return "apt-get downloaded no file"
    error = _run(["dpkg", "-x", archives[-1].name, f"{package}.unpacked"], work)
    archives[-1].unlink()
    if error:
        return error
    _keep_sounds(work / f"{package}.unpacked", package)
    try:
        (work / f"{package}.unpacked").replace(folder / package)
    except OSError as error:  # another run may have put it there meanwhile
        return "" if (folder / package).is_dir() else str(error)
    return ""


def _keep_sounds(root: Path, package: str) -> None:
    # Two thirds of the files are pictures; copyright files are needed for the credits.
    members = {row["member"] for row in read_index() if row["package"] == package}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        container = name in (ZIP_FILE, CAT_FILE) or name.startswith(RCC_FOLDER)
        if not path.is_dir() and not (container or name in members or path.name == "copyright"):
            path.unlink()


def _open(row: dict[str, str], folder: Path, failed: dict[str, str]) -> Path | bytes:
    if row["package"] in failed:
        raise UnusableSound(f"package {row['package']}: {failed[row['package']]}")
    root = folder / row["package"]
    container, member = row["container"], row["member"]
    if container == "plain":
        if not (root / member).is_file():
            raise UnusableSound("not in the package")
        return root / member
    if container == "zip":
        return read_zip(root / ZIP_FILE, member)
    if container == "rcc":
        where = _rcc_index(root / RCC_FOLDER).get(member)
        if where is None:
            raise UnusableSound("not in the package")
        return read_rcc(where, member)
    return read_cat(root / CAT_FILE, int(member))


def read_zip(path: Path, member: str) -> bytes:
    """Returns a member of a zip file; raises `UnusableSound`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (OSError, zipfile.BadZipFile, KeyError, zlib.error) as error:
        raise UnusableSound(f"zip: {error}") from error


def read_cat(path: Path, entry: int) -> bytes:
    """Returns the RIFF file of an entry of an OpenTTD sound catalogue; raises `UnusableSound`.

    Layout: pairs of little-endian uint32 (offset, size), the first offset being also the end of
    the pairs; each entry is a length byte, a label of that length, a RIFF file.
    """
    try:
        data = path.read_bytes()
        first = struct.unpack_from("<I", data)[0] & 0x7FFFFFFF
        if not 0 <= entry < first // 8:
            raise UnusableSound(f"cat: no entry {entry}")
        start, _size = struct.unpack_from("<II", data, 8 * entry)
        start = (start & 0x7FFFFFFF) + 1 + data[start & 0x7FFFFFFF]
        length = 8 + struct.unpack_from("<I", data, start + 4)[0]
    except (OSError, struct.error, IndexError) as error:
        raise UnusableSound(f"cat: {error}") from error
    riff = data[start : start + length]
    if riff[:4] != b"RIFF" or len(riff) < length:
        raise UnusableSound(f"cat: entry {entry} holds no RIFF file")
    return riff


@functools.lru_cache(maxsize=4)
def _rcc_index(folder: Path) -> dict[str, Path]:
    index = {}
    for path in sorted(folder.glob("*.rcc")):
        try:
            index.update(dict.fromkeys(_rcc_files(path.read_bytes()), path))
        except UnusableSound:
            continue  # its members are then reported as missing, one by one
    return index


def read_rcc(path: Path, member: str) -> bytes:
    """Returns a file out of a Qt binary resource file; raises `UnusableSound`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnusableSound(f"rcc: {error}") from error
    files = _rcc_files(data)
    if member not in files:
        raise UnusableSound("rcc: no such member")
    start, flags = files[member]
    if start + 4 > len(data):
        raise UnusableSound("rcc: truncated")
    (size,) = struct.unpack_from(">I", data, start)
    blob = data[start + 4 : start + 4 + size]
    if len(blob) < size:
        raise UnusableSound("rcc: truncated")
    if flags & 4:
        raise UnusableSound("rcc: Zstandard compression, expected zlib or none")
    if not flags & 1:
        return blob
    try:
        return zlib.decompress(blob[4:])  # qCompress puts the length before the zlib stream
    except zlib.error as error:
        raise UnusableSound(f"rcc: {error}") from error


def _rcc_files(data: bytes) -> dict[str, tuple[int, int]]:
    """Returns {path: (offset of the data, flags)} of a Qt resource file's tree.

    Layout (big-endian): "qres", version, offsets of tree, data and names; from version 3 on
    overall flags. A node is 14 bytes, from version 2 on 22: name offset uint32, flags uint16
    (1 zlib, 2 folder, 4 zstd), then either child count and first child (uint32 each) or
    country, language (uint16 each) and data offset (uint32).
    """
    try:
        magic, version, tree, start, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres":
            raise UnusableSound("rcc: not a Qt resource file")
        width = 14 if version == 1 else 22
        files, seen = {}, set()
        stack = [(0, "")]
        while stack:
            node, parent = stack.pop()
            if node in seen:
                raise UnusableSound("rcc: the tree has a cycle")
            seen.add(node)
            name_at, flags = struct.unpack_from(">IH", data, tree + node * width)
            first, second = struct.unpack_from(">II", data, tree + node * width + 6)
            (length,) = struct.unpack_from(">H", data, names + name_at)
            text = data[names + name_at + 6 : names + name_at + 6 + 2 * length]
            name = "" if node == 0 else text.decode("utf-16-be")
            path = f"{parent}/{name}".strip("/")
            if flags & 2:
                stack += [(child, path) for child in range(second, second + first)]
            else:
                files[path] = (start + second, flags)
    except (struct.error, UnicodeDecodeError) as error:
        raise UnusableSound(f"rcc: {error}") from error
    return files

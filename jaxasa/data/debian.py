"""Recordings in Debian packages: fetched with apt-get, unpacked with dpkg, neither as root.

`debian_sounds.csv` lists 1,314 labelled files in 27 packages of Debian 12. The 951 of the first
nine are shared among training, development and test. The others, which the bank "debian_more" has
beside, are for training alone, so that the benchmark stays what it was. Four kinds of containers
hold them: plain files, a zip file, Qt resource files (rcc) and OpenTTD's sound catalogue (cat).
Licences are free ones, most of them GPL or Creative Commons: packages are fetched when a bank is
built, and nothing of them is kept here.
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
from jaxasa.data.decode import Recording, Unusable

ZIP_FILE = "usr/share/games/ufoai/base/0snd.pk3"
RCC_FOLDER = "usr/share/gcompris-qt/rcc"
CAT_FILE = "usr/share/games/openttd/baseset/opensfx/opensfx.cat"
FETCH_SECONDS = 600
BANKS = ("debian", "debian_more")


class SoundsUnavailable(ConfigError):
    """The recordings cannot be had on this machine; the procedural bank always can."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/jaxasa` or `~/.cache/jaxasa`, so that two runs download once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxasa"


def index() -> list[dict[str, str]]:
    """The rows of debian_sounds.csv: package, container, member, label, recording_id, licence, ...

    Those that are only trained on come last, so that of two copies the other one stays.
    """
    text = importlib.resources.files("jaxasa.data").joinpath("debian_sounds.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def recordings(labels: Collection[str], folder: Path, more: bool = False) -> list[Recording]:
    """Lists the recordings with one of `labels` (all if empty), fetching their packages.

    more: with those for training alone.

    Packages are unpacked under `folder`/debian and used again. A recording of a package that
    could not be fetched raises `Unusable` when opened. Raises `SoundsUnavailable` when no
    package can be had, `ConfigError` for a label that the index lacks.
    """
    rows = [row for row in index() if more or not row["split"]]
    known = {row["label"] for row in rows}
    for label in labels:
        if label not in known:
            raise ConfigError(
                f"Sounds.classes has the label {label!r}, expected one of {sorted(known)}"
            )
    rows = [row for row in rows if not labels or row["label"] in labels]
    failed = fetch(sorted({row["package"] for row in rows}), folder / "debian")
    return [
        Recording(
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


def fetch(packages: Collection[str], folder: Path) -> dict[str, str]:
    """Unpacks each package into `folder`/NAME; returns the failures as {package: reason}.

    Raises `SoundsUnavailable` when apt-get or dpkg is missing or no package can be had.
    """
    missing = [p for p in packages if not (folder / p).is_dir()]
    if not missing:
        return {}
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise SoundsUnavailable(f"the debian bank needs {tool}, which this machine lacks")
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
        raise SoundsUnavailable(f"no package of the debian bank could be fetched: {reason}")
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
    """Package lists of our own: a container's are often empty, and only root may renew them."""
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
    options += ["-o", "APT::Sandbox::User=root"]
    _run(["apt-get", "update", "-qq", *options], work)
    return options


def _unpack(package: str, work: Path, folder: Path) -> str:
    archives = sorted(work.glob(f"{package}_*.deb"))
    if not archives:
        return "apt-get brought no file"
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
    # Two thirds of what is unpacked are pictures; copyright files stay for the credits.
    members = {row["member"] for row in index() if row["package"] == package}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        container = name in (ZIP_FILE, CAT_FILE) or name.startswith(RCC_FOLDER)
        if not path.is_dir() and not (container or name in members or path.name == "copyright"):
            path.unlink()


def _open(row: dict[str, str], folder: Path, failed: dict[str, str]) -> Path | bytes:
    if row["package"] in failed:
        raise Unusable(f"package {row['package']}: {failed[row['package']]}")
    root = folder / row["package"]
    container, member = row["container"], row["member"]
    if container == "plain":
        if not (root / member).is_file():
            raise Unusable("not in the package")
        return root / member
    if container == "zip":
        return read_zip(root / ZIP_FILE, member)
    if container == "rcc":
        where = _rcc_index(root / RCC_FOLDER).get(member)
        if where is None:
            raise Unusable("not in the package")
        return read_rcc(where, member)
    return read_cat(root / CAT_FILE, int(member))


def read_zip(path: Path, member: str) -> bytes:
    """Returns a member of a zip file; raises `Unusable`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (OSError, zipfile.BadZipFile, KeyError, zlib.error) as error:
        raise Unusable(f"zip: {error}") from error


def read_cat(path: Path, entry: int) -> bytes:
    """Returns the RIFF file of an entry of an OpenTTD sound catalogue; raises `Unusable`.

    Layout: pairs of little-endian uint32 (offset, size), the first offset also telling where
    the pairs end; each entry a length byte, a label of that length, a RIFF file.
    """
    try:
        data = path.read_bytes()
        first = struct.unpack_from("<I", data)[0] & 0x7FFFFFFF
        if not 0 <= entry < first // 8:
            raise Unusable(f"cat: no entry {entry}")
        start, size = struct.unpack_from("<II", data, 8 * entry)
        start = (start & 0x7FFFFFFF) + 1 + data[start & 0x7FFFFFFF]
        length = 8 + struct.unpack_from("<I", data, start + 4)[0]
    except (OSError, struct.error, IndexError) as error:
        raise Unusable(f"cat: {error}") from error
    riff = data[start : start + length]
    if riff[:4] != b"RIFF" or len(riff) < length:
        raise Unusable(f"cat: entry {entry} holds no RIFF file")
    return riff


@functools.lru_cache(maxsize=4)
def _rcc_index(folder: Path) -> dict[str, Path]:
    index = {}
    for path in sorted(folder.glob("*.rcc")):
        try:
            index.update(dict.fromkeys(_rcc_files(path.read_bytes()), path))
        except Unusable:
            continue  # its members are then named as missing, one by one
    return index


def read_rcc(path: Path, member: str) -> bytes:
    """Returns a file out of a Qt binary resource file; raises `Unusable`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(f"rcc: {error}") from error
    files = _rcc_files(data)
    if member not in files:
        raise Unusable("rcc: no such member")
    start, flags = files[member]
    if start + 4 > len(data):
        raise Unusable("rcc: truncated")
    (size,) = struct.unpack_from(">I", data, start)
    blob = data[start + 4 : start + 4 + size]
    if len(blob) < size:
        raise Unusable("rcc: truncated")
    if flags & 4:
        raise Unusable("rcc: Zstandard compression, expected zlib or none")
    if not flags & 1:
        return blob
    try:
        return zlib.decompress(blob[4:])  # qCompress puts the length before the zlib stream
    except zlib.error as error:
        raise Unusable(f"rcc: {error}") from error


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
            raise Unusable("rcc: not a Qt resource file")
        width = 14 if version == 1 else 22
        found, seen = {}, set()
        waiting = [(0, "")]
        while waiting:
            node, parent = waiting.pop()
            if node in seen:
                raise Unusable("rcc: the tree runs in a circle")
            seen.add(node)
            name_at, flags = struct.unpack_from(">IH", data, tree + node * width)
            first, second = struct.unpack_from(">II", data, tree + node * width + 6)
            (length,) = struct.unpack_from(">H", data, names + name_at)
            text = data[names + name_at + 6 : names + name_at + 6 + 2 * length]
            name = "" if node == 0 else text.decode("utf-16-be")
            path = f"{parent}/{name}".strip("/")
            if flags & 2:
                waiting += [(child, path) for child in range(second, second + first)]
            else:
                found[path] = (start + second, flags)
    except (struct.error, UnicodeDecodeError) as error:
        raise Unusable(f"rcc: {error}") from error
    return found

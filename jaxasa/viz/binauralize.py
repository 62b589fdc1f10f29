"""`jaxasa listen`: anything with a sound field as two channels for headphones."""

from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import binaural, foa_decoder, hrtf, render
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.data import foa_file, records, specs
from jaxasa.data.records import Records
from jaxasa.data.sounds import Bank


def binauralize(
    source: Path,
    out: Path,
    index: int | None = None,
    hrtf_name: str | None = None,
    convention: str | None = None,
    sounds: Path | None = None,
) -> dict:
    """Writes `out`, a stereo WAV file at 16 kHz, and returns what it was made of and how.

    source: an FOA file (channels as `order` says, by default "ambix"), a scene in JSON (SceneSpec;
    needs the bank `sounds`), or a folder of records, of which scene `index` (0) is taken. A scene
    whose bank is there (`sounds`, or DIR/sounds beside DIR/scenes/SPLIT) is rendered image by
    image; without it the stored FOA is decoded. head: "sphere" (default) or a SOFA file. Raises
    ConfigError, for an argument that the source has no use for too.
    """
    check(out.suffix.lower() == ".wav", "output", str(out), "a name that ends in .wav")
    check(out.parent.is_dir(), "output", str(out), "a file in a folder that exists")
    ears, how = _ears(source, index, hrtf_name, convention, sounds)
    peak = float(np.abs(ears).max(initial=0.0))
    gain = min(1.0, render.PEAK / peak) if peak > 0 else 1.0
    with atomic_path(out) as temporary:
        soundfile.write(temporary, ears * gain, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    seconds = len(ears) / SAMPLE_RATE
    name = None if how == "stored" else hrtf.load(hrtf_name or "sphere").name
    return {"file": str(out), "seconds": seconds, "from": how, "hrtf": name, "gain": gain}


def _ears(
    source: Path, index: int | None, head: str | None, order: str | None, sounds: Path | None
):
    """Returns two ears [T, 2], and how: "images", "foa" (decoded) or "stored"."""
    if source.is_dir():
        specs.refuse(source, "a folder of records", {"--order": order})
        return _of_records(source, index or 0, head, sounds)
    if source.suffix.lower() == ".json":
        specs.refuse(source, "a scene in JSON", {"--order": order, "--index": index})
        spec = specs.read(source)
        if sounds is None:
            raise ConfigError(f"{source} is a scene, expected --sounds DIR/sounds with its clips")
        return _images(spec, Bank.load(sounds), head), "images"
    specs.refuse(source, "a sound file", {"--index": index, "--sounds": sounds})
    return _decoded(foa_file.read(source, order or "ambix"), head)


def _decoded(audio: np.ndarray, head: str | None):
    return foa_decoder.decode(audio, hrtf.load(head or "sphere")), "foa"


def _of_records(folder: Path, index: int, head: str | None, sounds: Path | None):
    data = Records(folder)
    check(0 <= index < len(data), "--index", index, f"0 to {len(data) - 1}")
    stored = records.to_float(data[index][0])
    if stored.shape[1] == 2:
        specs.refuse(folder, "stored for two ears", {"--hrtf": head, "--sounds": sounds})
        return stored, "stored"
    try:
        beside = folder.parent.parent / "sounds"
        bank = Bank.load(beside if sounds is None else sounds)
        spec = specs.of_record(data, index, bank)
    except ConfigError:
        if sounds is not None:
            raise
        # Moved, or of another bank or version: the sound itself is still there.
        return _decoded(stored, head)
    return _images(spec, bank, head), "images"


def _images(spec: SceneSpec, bank: Bank, head: str | None) -> np.ndarray:
    for source in spec.sources:
        try:
            bank.audio(source.clip)
        except KeyError:
            expected = f"a clip of the bank {bank.folder}"
            raise ConfigError(f"clip {source.clip!r}, expected {expected}") from None
    return binaural.render(spec, bank.audio, hrtf.load(head or "sphere"))[0]

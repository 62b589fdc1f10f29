# SPDX-License-Identifier: Apache-2.0
"""Binaural rendering of scenes and FOA recordings for headphones (`jaxasa listen`)."""

from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import binaural, foa_decoder, render
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.core.workdir import WorkFolder
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
    """Renders `source` to `out`, a stereo WAV file at 16 kHz.

    source: an FOA file in `convention` (default "ambix"), a scene in JSON (SceneSpec; needs the
    sound bank `sounds`), or a folder of records, of which scene `index` (default 0) is rendered.
    If the sound bank of a scene is available (`sounds`, or DIR/sounds for DIR/scenes/SPLIT), each
    image source goes through the HRTF of its direction; otherwise the stored FOA is decoded.
    hrtf_name: "sphere" (default) or a SOFA file.

    Returns {"file", "seconds", "method", "hrtf", "gain"}. Raises ConfigError, also for arguments
    that do not apply to the source.
    """
    check(out.suffix.lower() == ".wav", "output", str(out), "a name that ends in .wav")
    check(out.parent.is_dir(), "output", str(out), "a file in a folder that exists")
    binaural_audio, method = _render(source, index, hrtf_name, convention, sounds)
    peak = float(np.abs(binaural_audio).max(initial=0.0))
    gain = min(1.0, render.MAX_PEAK / peak) if peak > 0 else 1.0
    with atomic_path(out) as temporary:
        soundfile.write(
            temporary, binaural_audio * gain, SAMPLE_RATE, subtype="PCM_16", format="WAV"
        )
    seconds = len(binaural_audio) / SAMPLE_RATE
    name = None if method == "stored" else load_hrtf(hrtf_name or "sphere").name
    return {"file": str(out), "seconds": seconds, "method": method, "hrtf": name, "gain": gain}


def _render(
    source: Path,
    index: int | None,
    hrtf_name: str | None,
    convention: str | None,
    sounds: Path | None,
):
    """Returns audio [N, 2] float and the method: "images", "foa" (decoded) or "stored"."""
    if source.is_dir():
        specs.refuse_options(source, "a folder of records", {"--convention": convention})
        return _render_record(source, index or 0, hrtf_name, sounds)
    if source.suffix.lower() == ".json":
        specs.refuse_options(
            source, "a scene in JSON", {"--convention": convention, "--index": index}
        )
        spec = specs.read_json(source)
        if sounds is None:
            raise ConfigError(f"{source} is a scene, expected --sounds DIR/sounds with its clips")
        return _render_images(spec, Bank.load(sounds), hrtf_name), "images"
    specs.refuse_options(source, "a sound file", {"--index": index, "--sounds": sounds})
    return _decode_foa(foa_file.raise_level(foa_file.read_foa(source, convention)), hrtf_name)


def _decode_foa(audio: np.ndarray, hrtf_name: str | None):
    return foa_decoder.decode(audio, load_hrtf(hrtf_name or "sphere")), "foa"


def _render_record(folder: Path, index: int, hrtf_name: str | None, sounds: Path | None):
    data = Records(folder)
    check(0 <= index < len(data), "--index", index, f"0 to {len(data) - 1}")
    stored = records.to_float(data[index][0])
    if stored.shape[1] == 2:
        specs.refuse_options(folder, "binaural", {"--hrtf": hrtf_name, "--sounds": sounds})
        return stored, "stored"
    try:
        bank = Bank.load(WorkFolder.around(folder).sounds if sounds is None else sounds)
        spec = specs.scene_of_record(data, index, bank)
    except ConfigError:
        if sounds is not None:
            raise
        # The folder was moved, or has another bank or version: decode the stored FOA.
        return _decode_foa(stored, hrtf_name)
    return _render_images(spec, bank, hrtf_name), "images"


def _render_images(spec: SceneSpec, bank: Bank, hrtf_name: str | None) -> np.ndarray:
    for source in spec.sources:
        try:
            bank.audio(source.clip)
        except KeyError:
            expected = f"a clip of the bank {bank.folder}"
            raise ConfigError(f"clip {source.clip!r}, expected {expected}") from None
    return binaural.render(spec, bank.audio, load_hrtf(hrtf_name or "sphere"))[0]

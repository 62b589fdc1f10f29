# SPDX-License-Identifier: Apache-2.0
"""Room acoustics and spatial audio: scenes, RIRs and renderers, in FOA and binaural.

Conventions: FOA is ACN/SN3D (AmbiX: W, Y, Z, X); x front, y left, z up; azimuth is in degrees,
counter-clockwise, left +90. Units are m, s, Hz and dB, at 16 kHz (core/audio.py). "room" is a
rooms.Shoebox, and "size" its length, width and height.

    scenes.py           scenes sampled from config.Scenes, and their descriptions
    spec.py             SceneSpec: what a renderer needs of a scene; JSON and validation
    paths.py            paths of moving sources: positions, retarded time, random walks
    materials.py        absorption coefficients of wall materials by name
    rooms.py            Shoebox; absorption, RT60 and late energy in closed form
    bands.py            octave bands, and the sample of an RIR that is time zero
    image_source.py     image-source method: list of images, and their RIR in FOA
    tail.py             late reverberation as shaped noise
    rir.py              RIR of a shoebox in FOA: images, then noise tail
    jax_rir.py          the same RIRs in JAX, for batches of rooms
    pyroom_engine.py    RIRs by pyroomacoustics
    measure.py          RT60, decay curves and DRR measured on an RIR
    foa.py              FOA encoding, rotation, intensity and conventions
    noise.py            diffuse noise in FOA
    convolve.py         convolution of many sources with their RIRs
    motion.py           moving sources in FOA
    render.py           renders a scene to FOA, with measured labels
    hrtf.py             interface of HRTFs: filters, spectra, diffuse field
    sphere_hrtf.py      HRTF of a rigid sphere
    sofa.py             measured HRTFs from SOFA files
    load_hrtf.py        an HRTF by name
    binaural_rir.py     BRIR of a shoebox
    binaural_motion.py  moving sources and turning listeners, binaural
    binaural.py         renders a scene binaurally
    foa_decoder.py      binaural decoding of FOA recordings
    numba_jit.py        options of compiled loops
    benchmark.py        rendering time, compared with pyroomacoustics
"""

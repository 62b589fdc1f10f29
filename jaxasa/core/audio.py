# SPDX-License-Identifier: Apache-2.0
"""Conventions of all audio in jaxasa: the sample rate and the full scale of 16-bit samples."""

SAMPLE_RATE = 16_000  # Hz
FULL_SCALE = 32767  # int16 value of amplitude 1.0; -32768 is never written

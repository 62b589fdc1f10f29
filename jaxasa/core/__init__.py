# SPDX-License-Identifier: Apache-2.0
"""Helpers that all packages use, without audio or models.

audio       sample rate and full scale
keys        keyed random generators
files       atomic writes, locks
workdir     WorkFolder: the paths within a run's folder; the check of its config
provenance  the version of jaxasa that made a file
walk        files below a folder, their names as text
text_files  text, CSV and JSON that people or other programs wrote
trees       nested dicts of parameters
cpu         settings that make the CPU faster
progress    a progress bar
"""

# SPDX-License-Identifier: Apache-2.0
"""Runs of several steps on one work folder.

steps      each step from sounds to report, as a function of a run and its folder
demo       `jaxasa demo`: all steps in order, with their time and memory
preflight  `jaxasa preflight`: every training stage for two steps
ablation/  `jaxasa bench ablate`: variants of a run over several seeds
"""

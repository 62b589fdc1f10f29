# SPDX-License-Identifier: Apache-2.0
"""The command line: `jaxasa COMMAND`, or `python -m jaxasa COMMAND`.

main     entry point, exit codes
options  how a command is declared, shared options, loading of the config
data     sounds, simulate, import
train    demo, train, preflight, plan
bench    bench build, run, external, score, audit, doa, seld, ablate, report, speed
use      ask, export, listen, plot
"""

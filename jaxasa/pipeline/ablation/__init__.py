# SPDX-License-Identifier: Apache-2.0
"""Ablations: variants of a run, trained over several seeds and compared.

plan    the jobs of all variants and seeds, each distinct one once
log     time that jobs have taken, and estimates
runner  does the jobs, in any number of processes, and compares the answers
"""

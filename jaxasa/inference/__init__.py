# SPDX-License-Identifier: Apache-2.0
"""Answers of a trained model, for `jaxasa ask`, the benchmark and ablations.

qa          QaModel (checkpoint or export to replies), ask (one recording)
estimates   the slots in words and units: sources, tracks, a scene's description
"""

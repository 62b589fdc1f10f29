# SPDX-License-Identifier: Apache-2.0
"""Benchmark: builds suites of four-option questions, answers and scores them, and reports.

Suites
    select_items     selection of the items, balanced by level, task and answer
    build            writes a suite: audio, metadata.jsonl, card, manifest
    suite            reads a suite and its items
    external_suite   suites from recordings of others
    audit            what texts alone and metadata score on a suite; overlap of its splits
    shortcut_probe   classifiers that see the texts alone
    card             the suite's card.md
Answers
    run              answers of systems to a suite, results.json
    controls         registry of the controls, and which systems are compared
    perturbations    rotated, mirrored, shuffled and swapped audio, with the answers for it
    baselines        answers by rules: oracle, slots, cascade
    score            accuracy, intervals, paired differences
    open_ended       scores of answers without options
    ablation         comparison of trained variants over seeds
Localization
    slots            errors of the slots on a suite
    doa              slots compared with classical estimators, by RT60
    classical        intensity histogram and MUSIC
    seld             SELD metrics of DCASE task 3
Report
    report           the HTML page (report.html.j2, report.js)
    figures          its figures, as SVG
    scene_viewer     its example scenes
"""

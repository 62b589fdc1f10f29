# SPDX-License-Identifier: Apache-2.0
"""Training, the same for every stage.

loop.py        the training loop: resume, step, evaluate, record, save; preemption
update.py      the gradient update, with gradient accumulation
optim.py       AdamW or Muon, and the learning-rate schedule
state.py       TrainState: parameters, optimizer state, reference parameters
checkpoint.py  checkpoints (orbax)
best.py        the checkpoint of the best evaluation
metrics.py     metrics.jsonl, TensorBoard, progress bar
"""

# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a stage and its learning-rate schedule.

The optimizer sees a flat dict {path: array} of the trainable parameters alone, with paths such as
"decoder/layers/q/kernel"; frozen parameters have neither gradients nor moments.
"""

from collections.abc import Mapping

import optax
import optax.contrib

from jaxasa import config


def schedule(stage: config.Stage) -> optax.Schedule:
    """Update -> learning rate: linear warm-up, then cosine decay to 10 % at the last update.

    A warm-up longer than half the run is cut to half of it, so that short runs learn too.
    """
    updates = stage.steps * stage.updates_per_step
    warmup = min(stage.warmup_steps * stage.updates_per_step, updates // 2)
    peak = stage.learning_rate
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    fall = optax.cosine_decay_schedule(peak, updates - warmup, alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(stage: config.Stage) -> optax.GradientTransformation:
    """Clipping by global norm (0: none), then AdamW or Muon, at `schedule`.

    AdamW decays matrices only. Muon (arXiv:2502.16982) orthogonalizes the momentum of each kernel;
    its updates have an RMS of 0.2, as Adam's have, so that both take the same learning rates. It
    decays kernels; all other parameters are updated by Adam with Nesterov momentum.
    """
    rate, decay = schedule(stage), stage.weight_decay
    if stage.optimizer == "muon":
        optimizer = optax.contrib.muon(
            rate,
            adam_b2=0.95,
            weight_decay=decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_muon_axes,
        )
    else:
        optimizer = optax.adamw(rate, b2=0.95, weight_decay=decay, mask=weight_decay_mask)
    clip = (
        optax.clip_by_global_norm(stage.max_grad_norm) if stage.max_grad_norm else optax.identity()
    )
    return optax.chain(clip, optimizer)


def _muon_axes(trainable: Mapping) -> dict:
    """{path: input and output axis of a kernel, None for another parameter}; the rest is batch."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    return {path: axes if path.endswith("/kernel") else None for path in trainable}


def weight_decay_mask(trainable: Mapping) -> dict[str, bool]:
    """{path: whether it is a matrix}, not counting the leading axis of scanned layers."""

    def is_matrix(path: str, leaf) -> bool:
        *folders, name = path.split("/")
        return name not in ("bias", "scale") and leaf.ndim - ("layers" in folders) >= 2

    return {path: is_matrix(path, leaf) for path, leaf in trainable.items()}

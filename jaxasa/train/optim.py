"""Which parameters learn, and the optimizer that moves them.

Parameters are a nested dict of arrays. What learns is a flat dict {path: array} with paths
such as "decoder/layers/q/kernel", so that the optimizer, its state and the gradient know
nothing of what is frozen.
"""

from collections.abc import Mapping

import optax
import optax.contrib

from jaxasa import config


def schedule(stage: config.Stage) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then a cosine down to 10 % at the last step.

    A warm-up longer than half the run is cut to half of it, so that short runs learn too.
    """
    warmup = min(stage.warmup_steps, stage.steps // 2)
    peak = stage.learning_rate
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    fall = optax.cosine_decay_schedule(peak, stage.steps - warmup, alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def make(stage: config.Stage) -> optax.GradientTransformation:
    """Global-norm clip (0: none), then AdamW or Muon on a flat dict at `schedule`.

    AdamW decays no vectors. Muon (arXiv:2502.16982) orthogonalises the momentum of each kernel, at
    0.2 in root mean square as Adam's updates are, so that both take the same learning rates; it
    decays kernels, and all else is moved by Adam with Nesterov's momentum.
    """
    rate, decay = schedule(stage), stage.weight_decay
    if stage.optimizer == "muon":
        moved = optax.contrib.muon(
            rate,
            adam_b2=0.95,
            weight_decay=decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_kernels,
        )
    else:
        moved = optax.adamw(rate, b2=0.95, weight_decay=decay, mask=decayed)
    clip = (
        optax.clip_by_global_norm(stage.max_grad_norm) if stage.max_grad_norm else optax.identity()
    )
    return optax.chain(clip, moved)


def _kernels(trainable: Mapping) -> dict:
    """{path: input and output axes of a kernel, None for what is none}; other axes are a batch."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    return {path: axes if path.endswith("/kernel") else None for path in trainable}


def decayed(trainable: Mapping) -> dict[str, bool]:
    """{path: is a matrix}. The leading axis of scanned layers is no dimension of a parameter."""

    def is_matrix(path: str, leaf) -> bool:
        *folders, name = path.split("/")
        return name not in ("bias", "scale") and leaf.ndim - ("layers" in folders) >= 2

    return {path: is_matrix(path, leaf) for path, leaf in trainable.items()}

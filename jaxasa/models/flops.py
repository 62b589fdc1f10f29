# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs of a step: 2 x parameters x positions forward, and the backward work on top.

A trainable parameter costs 6 FLOPs per position (2 forward, 4 backward), a frozen one that
gradients pass through 4, one before all trainable ones 2. Recomputation and the products of
attention with its keys and values do not count, and neither does looking up an embedding. Positions
are all that the batch has room for, padding included.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxasa import config
from jaxasa.core import trees
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.models.asa import ASA
from jaxasa.models.semantic import FRAMES_PER_SECOND

# The order in which activations pass through the parts.
DEPTH = {"semantic": 0, "spatial": 0, "projector": 1, "decoder": 2, "lora": 2}
# Modules of the spatial encoder that run once per scene, or per slot of it, and not at each step of
# the map (models/spatial.py).
PER_SCENE = ("room_hidden", "room")
PER_SLOT = ("seen", "writer", "slot_attractor", "slot_hidden", "presence", "label", "distance")


@dataclass(frozen=True)
class Workload:
    """Model work of a program: rows that pass through its parts.

    scenes: clips that are encoded (0: text alone, or embeddings are reused). prompts, completions:
    of the decoder. shares_prompts: each prompt is read once for all its completions.
    trainable: patterns of parameters with gradients; () for inference.
    """

    scenes: int = 0
    prompts: int = 0
    completions: int = 0
    shares_prompts: bool = False
    uses_adapters: bool = False
    trainable: tuple[str, ...] = ()


def positions(workload: Workload, model: config.Model, seconds: float) -> dict[str, int]:
    """{part: positions that it processes}; "head" is the output's table. seconds: of a scene."""
    scenes, completions = workload.scenes, workload.completions
    audio_tokens = ASA(model).num_audio_tokens(round(seconds * SAMPLE_RATE))
    frames = round(seconds * SAMPLE_RATE / model.spatial.hop_length)
    prompt, reply = audio_tokens + model.prompt_tokens, model.reply_tokens
    if workload.shares_prompts:
        decoder = workload.prompts * prompt + completions * (reply - 1)
    else:
        decoder = completions * (prompt + reply - 1)
    return {
        "semantic": scenes * round(seconds * FRAMES_PER_SECOND),
        "spatial": scenes * (frames // model.spatial.frames_per_step),
        "projector": scenes * (audio_tokens - model.spatial.num_slots),
        "slots": scenes * model.spatial.num_slots,
        "scenes": scenes,
        "decoder": decoder,
        "head": completions * reply,
        "lora": decoder if workload.uses_adapters else 0,
    }


def model_flops(workload: Workload, model: config.Model, seconds: float, shapes: Mapping) -> float:
    """FLOPs of a program over all chips; shapes: of the parameters, as a nested dict."""
    counts = positions(workload, model, seconds)
    flat = trees.flatten(shapes)
    trainable = {p for p in flat if any(re.fullmatch(x, p) for x in workload.trainable)}
    depths = {_depth(path) for path in trainable}
    total = 0.0
    for path, shape in flat.items():
        part, name = path.split("/")[:2]
        unit = part
        if name.startswith("slots_") or (part == "spatial" and name in PER_SLOT):
            unit = "slots"
        elif part == "spatial" and name in PER_SCENE:
            unit = "scenes"
        if path in ("decoder/embedding/embedding", "decoder/head"):
            if path != "decoder/head" and "decoder/head" in flat:
                continue
            unit = "head"
        has_gradient = any(depth <= _depth(path) for depth in depths)
        if _depth(path) == 0:
            # The encoders run side by side: gradients of one do not pass through the other.
            has_gradient = any(other.startswith(f"{part}/") for other in trainable)
        flops = 6 if path in trainable else 4 if has_gradient else 2
        total += flops * math.prod(shape.shape) * counts[unit]
    return total


def _depth(path: str) -> int:
    return DEPTH[path.partition("/")[0]]

"""Model FLOPs of a step: 2 x parameters x positions forward, and what learning adds to it.

A parameter that learns costs 6 FLOPs a position (2 forward, 4 backward), a frozen one that
gradients pass through 4, one before all that learns 2. Recomputation and the products of
attention with its keys and values are no model FLOPs, and an embedding that is looked up costs
none. Positions are all that the batch has room for, padding included.
"""

import math
import re
from collections.abc import Mapping

from jaxasa import config
from jaxasa.core import trees
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.models.asa import ASA
from jaxasa.models.semantic import FRAMES_PER_SECOND

# In which order what is heard passes through the parts.
DEPTH = {"semantic": 0, "spatial": 0, "projector": 1, "decoder": 2, "lora": 2}
# What of the spatial encoder works once a scene, or once a slot of it, and not at each step of
# the map (models/spatial.py).
ONCE = ("room_hidden", "room")
EACH_SLOT = ("seen", "writer", "slot_attractor", "slot_hidden", "presence", "label", "distance")


def positions(run: config.Run, what: str) -> dict[str, int]:
    """{part: positions that it processes in a step}; "head" is the output's table.

    what: a stage, or "rollout". Scenes are heard once each, whatever is asked about them; an update
    of stage grpo has what its rollout heard.
    """
    name = "grpo" if what == "rollout" else what
    stage, model = getattr(run, name), run.model
    scenes, seconds = stage.batch_size, run.scenes.seconds
    tokens = ASA(model).audio_tokens(round(seconds * SAMPLE_RATE))
    steps = round(seconds * SAMPLE_RATE / model.spatial.hop_length) // model.spatial.frames_per_step
    counts = {
        "semantic": scenes * round(seconds * FRAMES_PER_SECOND),
        "spatial": scenes * steps,
        "projector": scenes * (tokens - model.spatial.num_slots),
        "slots": scenes * model.spatial.num_slots,
        "once": scenes,
        "decoder": 0,
        "head": 0,
    }
    if what in ("text", "grpo"):
        counts = dict.fromkeys(counts, 0)
    if what != "spatial":
        prompt, reply = tokens + model.prompt_tokens, model.reply_tokens
        asked = scenes * getattr(stage, "questions_per_scene", 1)
        said = asked * (stage.num_generations if name == "grpo" else 1)
        if what in ("rollout", "grpo"):
            # A prompt is read once for all its completions.
            counts["decoder"] = asked * prompt + said * (reply - 1)
        else:
            counts["decoder"] = said * (prompt + reply - 1)
        counts["head"] = said * reply
    return counts | {"lora": counts["decoder"] if what in ("sft", "grpo", "rollout") else 0}


def model_flops(run: config.Run, what: str, shapes: Mapping) -> float:
    """FLOPs of a step over all chips; shapes: the parameters', as a nested dict."""
    counts = positions(run, what)
    stage = getattr(run, "grpo" if what == "rollout" else what)
    flat = trees.flatten(shapes)
    patterns = () if what == "rollout" else stage.trainable
    learning = {path for path in flat if any(re.fullmatch(p, path) for p in patterns)}
    depths = {_depth(path) for path in learning}
    total = 0.0
    for path, shape in flat.items():
        part, name = path.split("/")[:2]
        where = part
        if name.startswith("slots_") or (part == "spatial" and name in EACH_SLOT):
            where = "slots"
        elif part == "spatial" and name in ONCE:
            where = "once"
        if path in ("decoder/embedding/embedding", "decoder/head"):
            if path != "decoder/head" and "decoder/head" in flat:
                continue
            where = "head"
        passes = any(depth <= _depth(path) for depth in depths)
        if _depth(path) == 0:
            # The encoders stand side by side: what the other learns passes not here.
            passes = any(other.startswith(f"{part}/") for other in learning)
        times = 6 if path in learning else 4 if passes else 2
        total += times * math.prod(shape.shape) * counts[where]
    return total


def _depth(path: str) -> int:
    return DEPTH[path.partition("/")[0]]

"""Which systems the benchmark compares: a checkpoint, what it may hear, what is done to the sound.

    question_only      no audio                     mono               W alone, or the mean of ears
    spatial_nulled     the learnt null in place of the dense map
    channels_shuffled  Y, Z, X exchanged            other_audio        another scene's sound
    rotated            each scene turned by a random yaw, answers derived anew
    rotated_90, _180, _270                          turned, likewise; with the suite as it is they
                       give `four_yaws`: an item counts only if it is right at all four
    mirrored           left and right exchanged, answers derived anew

They are fair only on a checkpoint that met W alone, no audio and the null in training
(SftStage.mono_prob, no_audio_share, null_share).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from jaxasa.bench import perturbations

YAWS = (90, 180, 270)


@dataclass(frozen=True)
class System:
    """stage: whose checkpoint answers. hearing: of ask.HEARING. change: one of bench/perturbations.py."""

    stage: str
    hearing: str = "full"
    change: Callable = perturbations.none


CONTROLS: dict[str, tuple[str, Callable]] = {
    "question_only": ("none", perturbations.none),
    "mono": ("mono", perturbations.none),
    "spatial_nulled": ("nulled", perturbations.none),
    "channels_shuffled": ("full", perturbations.shuffled),
    "other_audio": ("full", perturbations.other),
    "rotated": ("full", perturbations.turned(None)),
    "mirrored": ("full", perturbations.mirrored),
    **{f"rotated_{yaw}": ("full", perturbations.turned(float(yaw))) for yaw in YAWS},
}
# Changes of an FOA field, which two ears do not allow.
FOA_ONLY = ("channels_shuffled", "rotated", "mirrored", *(f"rotated_{yaw}" for yaw in YAWS))
TURNED = ("rotated", "mirrored", *(f"rotated_{yaw}" for yaw in YAWS))


def systems(stages: Collection[str], controls: Collection[str]) -> dict[str, System]:
    """The systems that the trained `stages` allow, the `controls` on the last of sft and grpo.

    Question only and mono are also run on the SFT checkpoint, where both stages are there.
    """
    trained = [s for s in ("sft", "grpo") if s in stages]
    found = {stage: System(stage) for stage in trained}
    if trained:
        found |= {n: System(trained[-1], *how) for n, how in CONTROLS.items() if n in controls}
    if len(trained) == 2:
        for name in ("question_only", "mono"):
            if name in controls:
                found[f"{name}_sft"] = System("sft", *CONTROLS[name])
    return found


def pairs(names: Collection[str]) -> list[tuple[str, str, str]]:
    """(system, control, name of the control's answers) for each paired difference.

    A system is compared with the control on its own checkpoint, where that was run. Controls
    whose items are others than the suite's have no pairs.
    """
    found = []
    for system in ("sft", "grpo"):
        for control in CONTROLS:
            own = f"{control}_{system}" if f"{control}_{system}" in names else control
            is_last = system == "grpo" or "grpo" not in names
            if control not in ("question_only", "mono") and not is_last:
                continue
            if control not in TURNED and system in names and own in names:
                found.append((system, control, own))
    return found

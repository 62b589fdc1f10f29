"""Which systems the benchmark compares: a training stage's checkpoint, and what it may hear."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """stage: whose checkpoint answers. hearing: "full", "mono" (W only) or "none"."""

    stage: str
    hearing: str


def systems(stages: Collection[str]) -> dict[str, System]:
    """The systems that the trained `stages` allow, the controls on the last of sft and grpo.

    Controls are fair only on a checkpoint that met W-only input and questions without audio in
    training (SftStage.mono_share, no_audio_share).
    """
    trained = [s for s in ("sft", "grpo") if s in stages]
    found = {stage: System(stage, "full") for stage in trained}
    if trained:
        found["question_only"] = System(trained[-1], "none")
        found["mono"] = System(trained[-1], "mono")
    if len(trained) == 2:
        found["question_only_sft"] = System("sft", "none")
        found["mono_sft"] = System("sft", "mono")
    return found


def pairs(names: Collection[str]) -> list[tuple[str, str, str]]:
    """(system, control, name of the control's answers) for each paired difference.

    A system is compared with the control on its own checkpoint, where that was run.
    """
    found = []
    for system in ("sft", "grpo"):
        for control in ("question_only", "mono"):
            own = f"{control}_{system}" if f"{control}_{system}" in names else control
            if system in names and own in names:
                found.append((system, control, own))
    return found

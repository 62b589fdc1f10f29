# SPDX-License-Identifier: Apache-2.0
"""The benchmark's controls: a trained checkpoint that gets other audio, or less of it.

`CONTROLS` is the one list of them. To add one, add it here; `Bench.controls` in a gin file says
which are run.

They are fair only to a checkpoint that met mono, silence and the null embedding in training
(SftStage.mono_prob, audio_dropout_prob and spatial_dropout_prob).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jaxasa.bench import perturbations
from jaxasa.bench.perturbations import Perturbation
from jaxasa.config import check
from jaxasa.stages.registry import ANSWERING

YAWS = (90, 180, 270)


@dataclass(frozen=True)
class Control:
    """A condition under which a checkpoint answers the suite once more.

    name: in Bench.controls, results.json and predictions/. title: in tables and figures.
    meaning: the change and what it shows, in sentences for the report.
    audio_condition: one of qa.AUDIO_CONDITIONS. perturb: changes the suite.
    needs_foa: whether it is impossible for binaural audio.
    is_geometric: whether scenes are rotated or mirrored, and their answers derived again.
    is_per_stage: whether it is run on the SFT checkpoint too if there is one after GRPO.
    """

    name: str
    title: str
    meaning: str
    audio_condition: str = "full"
    perturb: Perturbation = perturbations.identity
    needs_foa: bool = False
    is_geometric: bool = False
    is_per_stage: bool = False


def _geometric(name: str, title: str, action: str, perturb: Perturbation) -> Control:
    meaning = (
        f"{action}, and the answers are derived again from the transformed scenes. A model that "
        "uses direction stays as accurate; one that ignores it keeps giving the original answers, "
        "which are now wrong."
    )
    return Control(name, title, meaning, perturb=perturb, needs_foa=True, is_geometric=True)


CONTROLS: dict[str, Control] = {
    control.name: control
    for control in (
        Control(
            "question_only",
            "question only",
            "The model gets the question and its options without audio. If it does better than "
            "chance, the questions give their answers away.",
            audio_condition="none",
            is_per_stage=True,
        ),
        Control(
            "mono",
            "mono",
            "The model gets the omnidirectional channel W alone (of binaural audio, the mean of "
            "both ears). The loss of accuracy is the contribution of spatial information.",
            audio_condition="mono",
            is_per_stage=True,
        ),
        Control(
            "spatial_nulled",
            "spatial encoder off",
            "The output of the spatial encoder is replaced by a learnt null embedding. The loss "
            "of accuracy is the contribution of this encoder.",
            audio_condition="no_spatial",
        ),
        Control(
            "channels_shuffled",
            "channels shuffled",
            "The directional channels Y, Z and X are exchanged, so that directions are wrong. "
            "A model that uses them loses accuracy.",
            perturb=perturbations.shuffle_channels,
            needs_foa=True,
        ),
        Control(
            "other_audio",
            "audio of another scene",
            "The model gets the audio of another scene. A model that uses the audio loses "
            "accuracy.",
            perturb=perturbations.swap_scenes,
        ),
        _geometric(
            "rotated",
            "rotated by a random yaw",
            "Each scene is rotated by a random yaw",
            perturbations.rotation(None),
        ),
        _geometric(
            "mirrored",
            "mirrored left to right",
            "Left and right are exchanged",
            perturbations.mirror,
        ),
        *(
            _geometric(
                f"rotated_{yaw}",
                f"rotated by {yaw}°",
                f"Each scene is rotated by {yaw}°",
                perturbations.rotation(float(yaw)),
            )
            for yaw in YAWS
        ),
    )
}


def select(names: Collection[str]) -> list[Control]:
    """The controls of these names ("all": every one), in the order of CONTROLS.

    Raises ConfigError for an unknown name.
    """
    is_known = set(names) <= {"all", *CONTROLS}
    check(is_known, "Bench.controls", names, "names out of all, " + ", ".join(CONTROLS))
    return [c for c in CONTROLS.values() if "all" in names or c.name in names]


@dataclass(frozen=True)
class System:
    """What answers the suite: the checkpoint of a stage, under the condition of a control.

    audio_condition, perturb: as of Control.
    """

    stage: str
    audio_condition: str = "full"
    perturb: Perturbation = perturbations.identity


def systems(stages: Collection[str], controls: Iterable[Control]) -> dict[str, System]:
    """Systems by name: the trained `stages` that answer questions, and the `controls` on the last.

    A control that is_per_stage is also run on the others, as NAME_STAGE.
    """
    trained = [stage for stage in ANSWERING if stage in stages]
    by_name = {stage: System(stage) for stage in trained}
    if not trained:
        return by_name
    controls = list(controls)
    for c in controls:
        by_name[c.name] = System(trained[-1], c.audio_condition, c.perturb)
    for c in controls:
        for stage in trained[:-1] if c.is_per_stage else ():
            by_name[f"{c.name}_{stage}"] = System(stage, c.audio_condition, c.perturb)
    return by_name


def pairs(names: Collection[str]) -> list[tuple[str, str, str]]:
    """(stage, control, system that answers the control) for each paired difference.

    names: of the systems that were run. A stage is compared with the control on its own
    checkpoint. Geometric controls have no pairs, since their items differ from the suite's.
    """
    result = []
    trained = [stage for stage in ANSWERING if stage in names]
    for stage in trained:
        for control in CONTROLS.values():
            own = f"{control.name}_{stage}"
            system = own if own in names else control.name
            is_last = stage == trained[-1]
            if control.is_geometric or not (is_last or control.is_per_stage):
                continue
            if system in names:
                result.append((stage, control.name, system))
    return result

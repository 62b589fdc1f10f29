# SPDX-License-Identifier: Apache-2.0
"""Options of `jaxasa bench ablate`: variants of a run, and seeds."""

import dataclasses
from dataclasses import dataclass

from jaxasa.config.checks import check, check_at_least
from jaxasa.config.model import EXPERTS

SUITES = ("benchmark", "dev")  # splits of scenes that have a suite of questions


def default_variants() -> dict[str, tuple[str, ...]]:
    """The ablations of the published system (arXiv:2601.02954), and those that it lacks."""
    mono = ("SpatialStage", "AlignStage", "SftStage")
    return {
        "p2": (),
        "p1": ("Projector.kind='p1'",),
        "p0": ("Projector.kind='p0'",),
        **{f"without_{name}": (f"Projector.drop_experts=('{name}',)",) for name in EXPERTS},
        "mono": tuple(f"{stage}.mono_prob=1.0" for stage in mono),
        "binaural": ("Spatial.format='binaural'", "Spatial.features='interaural'"),
        "without_align": ("Run.stages=('text','spatial','sft')",),
        "grpo": ("Run.stages=('text','spatial','align','sft','grpo')",),
    }


@dataclass(frozen=True)
class Ablation:
    """Variants of a run, trained over several seeds and compared on its benchmark.

    variants: name -> bindings over those of the run, as after --gin. on the command line. Sounds,
        scenes, questions and the suite are the same for all. A variant with SftStage.mono_prob
        of 1 is evaluated on W alone.
    base: the variant with which the others are compared.
    split: the suite to answer: "benchmark", or "dev" for choosing between variants; then no
        benchmark scenes are rendered.
    seeds: of training: parameters, order and augmentation of the scenes. Data, and stage text if
        it comes first, are made once, from Run.seed.
    projector_steps: steps of stage 1 in which each variant's projector is trained from scratch on
        frozen encoders. These are trained once, with the base's projector, for all variants with
        the same encoders and audio. 0: each variant trains all of stage 1 for itself.
    seconds: estimated seconds of a unit of work until the run has measured it: a step of text,
        spatial, projector, align, sft or grpo, a scene ("scenes", "binaural"), a room ("rirs"),
        an item ("suite", "answers"), the sound bank ("sounds").
    """

    variants: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=default_variants)
    base: str = "p2"
    split: str = "benchmark"
    seeds: tuple[int, ...] = (0, 1, 2)
    projector_steps: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        ok = all(n and n.replace("_", "").replace("-", "").isalnum() for n in self.variants)
        check(ok, "Ablation.variants", list(self.variants), "names of letters, digits, _ and -")
        names = ", ".join(self.variants)
        check(self.base in self.variants, "Ablation.base", self.base, f"one of {names}")
        check(self.split in SUITES, "Ablation.split", self.split, " or ".join(SUITES))
        seeds = self.seeds
        ok = len(seeds) > 0 and len(set(seeds)) == len(seeds)
        ok = ok and all(isinstance(s, int) and s >= 0 for s in seeds)
        check(ok, "Ablation.seeds", seeds, "different whole numbers of at least 0")
        check_at_least(self, 0, "projector_steps")
        ok = all(s >= 0 for s in self.seconds.values())
        check(ok, "Ablation.seconds", self.seconds, "numbers of at least 0")

"""Options of `jaxasa bench ablate`: which variants of a run, over which seeds."""

import dataclasses
from dataclasses import dataclass

from jaxasa.config.checks import check, check_at_least
from jaxasa.config.model import EXPERTS

SUITES = ("benchmark", "dev")  # splits of scenes that are asked about


def published() -> dict[str, tuple[str, ...]]:
    """The comparisons that the published system leaves out, and those that it has."""
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

    variants: name -> bindings over those of the run, as behind --gin. on the command line. Sounds,
        scenes, questions and the suite are the same for all. A variant whose SftStage.mono_prob
        is 1 is asked in W alone.
    base: the variant with which the others are compared.
    split: whose scenes and recordings they are asked about: "benchmark", or "dev", by which one may
        choose; then no scene of the benchmark is made.
    seeds: of training: parameters, order and augmentation of the scenes. Data, and stage text
        where it comes first, are made once from Run.seed.
    projector_steps: steps of stage 1 in which each variant's projector learns from scratch on
        frozen encoders, which have learnt once with the base's projector for all variants that
        hear alike. 0: each variant has the whole of stage 1 for itself.
    seconds: what a unit of work takes until the run has measured it, for its estimates: a step of
        text, spatial, projector, align, sft or grpo, a scene ("scenes", "binaural"), an item
        ("suite", "answers"), the sound bank ("sounds").
    """

    variants: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=published)
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

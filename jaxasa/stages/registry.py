# SPDX-License-Identifier: Apache-2.0
"""The stages, in the order of the curriculum: the only list of them."""

from jaxasa.stages import align, grpo, sft, spatial, text
from jaxasa.stages.stage import TrainingStage

STAGES: dict[str, TrainingStage] = {
    stage.name: stage for stage in (text.STAGE, spatial.STAGE, align.STAGE, sft.STAGE, grpo.STAGE)
}

# Stages whose models answer questions, and which the benchmark therefore scores.
ANSWERING = tuple(name for name, stage in STAGES.items() if stage.system)

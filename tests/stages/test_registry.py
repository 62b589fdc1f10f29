# SPDX-License-Identifier: Apache-2.0
import pytest

from jaxasa import config
from jaxasa.stages import registry


def test_stages_are_those_of_config_run_in_order():
    assert tuple(registry.STAGES) == config.STAGES
    assert registry.ANSWERING == ("sft", "grpo")


@pytest.mark.parametrize("stage", registry.STAGES.values(), ids=lambda stage: stage.name)
def test_stage_names_fields_of_run_and_parts_of_the_model(stage):
    assert set(stage.parts) <= set(config.PARTS)
    for path in (*stage.depends_on, stage.name):
        owner = config.Run
        for name in path.split("."):
            owner = owner.__dataclass_fields__[name].type
    assert stage.title.startswith(f"stage {config.STAGES.index(stage.name)}: ")

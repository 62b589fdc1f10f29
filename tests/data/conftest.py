# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

AUDIO_TOKENS = 4


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """A procedural sound bank of four classes, one clip a recording."""
    from jaxasa import config
    from jaxasa.data import procedural, sounds

    folder = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        names = ("alarm", "blast", "drum", "typing")
        classes = {name: procedural.CLASSES[name] for name in names}
        patch.setattr(procedural, "CLASSES", classes)
        patch.setattr(procedural, "CLIPS_PER_RECORDING", 1)
        return sounds.build(config.Sounds("procedural"), folder, 0)


@pytest.fixture(scope="session")
def audio_scenes(described):
    """[(int16 audio [40, 4], description)] of 24 scenes, each audio different."""
    rng = np.random.default_rng(0)
    return [(rng.integers(-99, 99, (40, 4)).astype(np.int16), s) for s in described(24, (2, 3))]


@pytest.fixture(scope="session")
def qa_examples(tiny, text):
    """`qa_examples(questions_per_scene, **options)`: a QaExamples with 4 audio tokens."""
    from jaxasa.data import questions, transforms

    def make(questions_per_scene=3, **options):
        sampler = questions.QuestionSampler(tiny.classes)
        parts = (sampler, tiny.model, text, AUDIO_TOKENS, questions_per_scene)
        return transforms.QaExamples(*parts, **options)

    return make


@pytest.fixture(scope="session")
def spatial_examples(tiny):
    """`spatial_examples(augment)`: a SpatialExamples of two slots."""
    from jaxasa.data import transforms

    return lambda augment: transforms.SpatialExamples(tiny.classes, 2, 0.3, augment)

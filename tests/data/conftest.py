import pytest


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """A procedural sound bank of four classes, one clip a recording."""
    from jaxasa import config
    from jaxasa.data import procedural, sounds

    folder = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing")
        classes = {name: procedural.CLASSES[name] for name in keep}
        patch.setattr(procedural, "CLASSES", classes)
        patch.setattr(procedural, "CLIPS", 1)
        return sounds.build(config.Sounds("procedural"), folder, 0)

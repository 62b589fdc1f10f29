import numpy as np
import pytest

from jaxasa.core import keys
from jaxasa.data import scene_text, synthetic_text


@pytest.fixture(scope="module")
def drawn(text, tiny):
    """(prompt, reply) of 400 drills, without the end of sequence."""
    made = [
        synthetic_text.draw(text, tiny.classes, keys.rng(0, "drills", i), 40, 60)
        for i in range(400)
    ]
    assert all(reply[-1] == text.eos and len(prompt) <= 32 for prompt, reply in made)
    return [(prompt, reply[:-1]) for prompt, reply in made]


def told(text, drawn):
    return [(text.decode(p).split(), text.decode(r).split()) for p, r in drawn]


def test_what_a_drill_asks_for_follows_from_its_prompt(text, tiny, drawn):
    """Each drill's rule, from the texts alone; and each is drawn."""
    comma = text.encode(" ,")[0]
    seen = dict.fromkeys(("copy", "recall", "places", "facing"), 0)
    for (prompt, reply), (asked, said) in zip(drawn, told(text, drawn), strict=True):
        if prompt == reply:
            seen["copy"] += 1
        elif asked == ["."]:
            seen["facing"] += 1
            for k in range(0, len(said), 6):
                _, a, _, b, so, found = said[k : k + 6]
                a, b, found = (45 * scene_text.SECTORS.index(p) for p in (a, b, found))
                assert so == "so" and (b - a - found) % 360 == 0
        elif len(prompt) % 4 == 0:  # clauses of three words, commas between, and a point
            seen["places"] += 1
            claims = scene_text.claims(" ".join(asked), tiny.classes)
            pairs = [{c["class"], c["sector"]} for c in claims]
            assert all(set(said[k : k + 2]) in pairs for k in range(0, len(said), 2))
        else:
            seen["recall"] += 1
            rows = [prompt[k : k + 3] for k in range(0, len(prompt), 4)]
            for k in range(0, len(reply), 4):
                assert reply[k : k + 3] in rows or reply[k : k + 3][::-1] in rows
                assert reply[k + 3 : k + 4] in ([comma], [])
    shares = np.array([seen[name] for name in ("copy", "recall", "places", "facing")]) / len(drawn)
    np.testing.assert_allclose(shares, [0.05, 0.25, 0.5, 0.2], atol=0.07)


def test_two_classes_are_enough(text, tiny):
    for i in range(60):
        synthetic_text.draw(text, tiny.classes[:2], keys.rng(0, "few", i), 40, 60)


def test_drills_keep_to_the_room_there_is(text, tiny):
    for i in range(100):
        prompt, reply = synthetic_text.draw(text, tiny.classes, keys.rng(0, "small", i), 9, 12)
        assert 0 < len(prompt) <= 9 and 0 < len(reply) <= 12

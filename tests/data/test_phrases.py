# SPDX-License-Identifier: Apache-2.0
import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data import phrases, scene_text

SOURCE = st.fixed_dictionaries(
    {
        "class": st.sampled_from(["bird", "engine", "dog"]),
        "azimuth": st.floats(-179, 180),
        "elevation": st.floats(-60, 60),
        "distance": st.floats(0.5, 5),
        "onset": st.just(0.0),
    }
)


def test_doctest():
    assert doctest.testmod(phrases).failed == 0


@given(st.lists(SOURCE, min_size=1, max_size=3), st.floats(0.1, 1.2), st.integers(0, 10**6))
def test_paraphrase_agrees_with_the_scene(sources, rt60, seed):
    caption = phrases.paraphrase({"sources": sources, "rt60": rt60}, np.random.default_rng(seed))
    for source in sources:
        places = phrases.PLACES[scene_text.sector_name(source["azimuth"])]
        assert source["class"] in caption and any(place in caption for place in places)
        near = any(word in caption for word in phrases.NEAR)
        metres = f"{source['distance']:.1f} metres away"
        assert metres in caption or near or any(word in caption for word in phrases.FAR)
    if max(abs(s["elevation"]) for s in sources) < phrases.CLEAR_ELEVATION_DEG:
        assert not any(word in caption for word in ("up high", "overhead", "down low", "below"))
    live = any(word in caption for word in phrases.ROOMS["live"])
    dry = any(word in caption for word in phrases.ROOMS["dry"])
    assert not (live and rt60 <= phrases.LIVE_S) and not (dry and rt60 >= phrases.DRY_S)


def test_paraphrases_are_varied():
    source = {"class": "dog", "azimuth": 90.0, "elevation": 30.0, "distance": 1.0}
    scene = {"sources": [source], "rt60": 0.9}
    captions = {phrases.paraphrase(scene, np.random.default_rng(i)) for i in range(500)}
    assert len(captions) > 200

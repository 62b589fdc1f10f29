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


def test_the_example_of_the_module():
    assert doctest.testmod(phrases).failed == 0


@given(st.lists(SOURCE, min_size=1, max_size=3), st.floats(0.1, 1.2), st.integers(0, 10**6))
def test_a_phrasing_says_what_is_so(sources, rt60, seed):
    said = phrases.phrased({"sources": sources, "rt60": rt60}, np.random.default_rng(seed))
    for source in sources:
        places = phrases.PLACES[scene_text.sector(source["azimuth"])]
        assert source["class"] in said and any(place in said for place in places)
        near = any(word in said for word in phrases.NEAR)
        metres = f"{source['distance']:.1f} metres away"
        assert metres in said or near or any(word in said for word in phrases.FAR)
    if max(abs(s["elevation"]) for s in sources) < phrases.CLEAR_ELEVATION:
        assert not any(word in said for word in ("up high", "overhead", "down low", "below"))
    live = any(word in said for word in phrases.ROOMS["live"])
    dry = any(word in said for word in phrases.ROOMS["dry"])
    assert not (live and rt60 <= phrases.LIVE) and not (dry and rt60 >= phrases.DRY)


def test_phrasings_are_many():
    source = {"class": "dog", "azimuth": 90.0, "elevation": 30.0, "distance": 1.0}
    scene = {"sources": [source], "rt60": 0.9}
    said = {phrases.phrased(scene, np.random.default_rng(i)) for i in range(500)}
    assert len(said) > 200

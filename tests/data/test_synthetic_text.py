# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxasa.core import keys
from jaxasa.data import scene_text, synthetic_text


@pytest.fixture(scope="module")
def pairs(text, tiny):
    """(prompt, reply) of 400 tasks, without the end of sequence."""
    pairs = [
        synthetic_text.sample_pair(text, tiny.classes, keys.rng(0, "drills", i), 40, 60)
        for i in range(400)
    ]
    assert all(reply[-1] == text.eos_id and len(prompt) <= 32 for prompt, reply in pairs)
    return [(prompt, reply[:-1]) for prompt, reply in pairs]


def test_replies_follow_from_their_prompts(text, tiny, pairs):
    """The rule of each task, from the texts alone; and each task occurs with its share."""
    comma = text.encode(" ,")[0]
    counts = dict.fromkeys(("copy", "recall", "places", "facing"), 0)
    for prompt, reply in pairs:
        prompt_words, words = text.decode(prompt).split(), text.decode(reply).split()
        if prompt == reply:
            counts["copy"] += 1
        elif prompt_words == ["."]:
            counts["facing"] += 1
            for k in range(0, len(words), 6):
                _, a, _, b, so, answer = words[k : k + 6]
                a, b, answer = (45 * scene_text.SECTORS.index(p) for p in (a, b, answer))
                assert so == "so" and (b - a - answer) % 360 == 0
        elif len(prompt) % 4 == 0:  # clauses of three words, commas in between, a full stop
            counts["places"] += 1
            clauses = scene_text.parse_caption(" ".join(prompt_words), tiny.classes)
            names = [{c["class"], c["sector"]} for c in clauses]
            assert all(set(words[k : k + 2]) in names for k in range(0, len(words), 2))
        else:
            counts["recall"] += 1
            rows = [prompt[k : k + 3] for k in range(0, len(prompt), 4)]
            for k in range(0, len(reply), 4):
                assert reply[k : k + 3] in rows or reply[k : k + 3][::-1] in rows
                assert reply[k + 3 : k + 4] in ([comma], [])
    shares = np.array(list(counts.values())) / len(pairs)
    np.testing.assert_allclose(shares, [0.05, 0.25, 0.5, 0.2], atol=0.07)


def test_two_classes_are_enough(text, tiny):
    for i in range(60):
        synthetic_text.sample_pair(text, tiny.classes[:2], keys.rng(0, "few", i), 40, 60)


def test_pairs_keep_to_their_lengths(text, tiny):
    for i in range(100):
        rng = keys.rng(0, "small", i)
        prompt, reply = synthetic_text.sample_pair(text, tiny.classes, rng, 9, 12)
        assert 0 < len(prompt) <= 9 and 0 < len(reply) <= 12

# SPDX-License-Identifier: Apache-2.0
"""Four-option questions about a scene: perception (L1), relations (L2), reasoning (L3).

    context.py        QuestionContext: recorded random choices; thresholds, geometry
    drafts.py         Draft: wording, answer, distractors; builders by kind of answer
    question_type.py  QuestionType, and QuestionLevel whose decorator declares one
    perception.py     the question types of L1
    relations.py      the question types of L2
    reasoning.py      the question types of L3
    question.py       Question, QUESTION_TYPES, and how a type is put to a scene
    sampler.py        QuestionSampler: balanced sampling of questions for training

A question type reads a scene description (acoustics/scenes.py) and returns a question with its
answer, or None if the scene does not support one without ambiguity. To add one, write a decorated
function in the file of its level; the name of the function is its id, for `Questions.tasks`.

Options come in random order, so that each letter is right equally often. Distractors are drawn so
that the question alone reveals nothing: sectors and classes uniformly, the other classes of the
scene first, and none that the question names.

    >>> import numpy as np
    >>> from jaxasa.data import questions
    >>> bird = {"class": "bird", "azimuth": 92.0, "elevation": 3.0, "distance": 1.2,
    ...         "onset": 0.5, "offset": 1.5}
    >>> classes = ("bird", "drum", "engine", "steps")
    >>> rng = np.random.default_rng(0)
    >>> question = questions.sample_question({"sources": [bird]}, classes, rng, "sector_after_turn")
    >>> question.question, question.answer_text
    ('you turn around . where is the bird then ?', 'right')
"""

from jaxasa.data.questions.context import MARGIN_DEG, positions_while_sounding  # noqa: F401
from jaxasa.data.questions.question import (  # noqa: F401
    LETTERS,
    QUESTION_TYPES,
    Question,
    reinstantiate,
    sample_question,
    task_weights,
)
from jaxasa.data.questions.sampler import ALL, QuestionSampler  # noqa: F401

"""Four-option questions about a scene: perception (L1), relations (L2), reasoning (L3).

A task reads the scene description (acoustics/scenes.py) and returns a question with its
answer, or None where the scene does not support one without ambiguity (viz/plot_room.py). To add one,
write its function in perceive.py, relate.py or reason.py and name it in tasks.py.

Options come in random order, so that each letter is right equally often, and the wrong ones
are drawn so that the question alone tells nothing: sectors and classes uniformly, the other
classes of the scene first, and none that the question names.

    >>> import numpy as np
    >>> from jaxasa.data import questions
    >>> bird = {"class": "bird", "azimuth": 92.0, "elevation": 3.0, "distance": 1.2,
    ...         "onset": 0.5, "offset": 1.5}
    >>> classes = ("bird", "drum", "engine", "steps")
    >>> asked = questions.ask({"sources": [bird]}, classes, np.random.default_rng(0), "turn")
    >>> asked.question, asked.answer_text
    ('if you turn right , where is the bird ?', 'back')
"""

from jaxasa.data.questions.context import MARGIN, Draft, Draw, while_heard  # noqa: F401
from jaxasa.data.questions.sampler import ALL, Asking  # noqa: F401
from jaxasa.data.questions.tasks import (  # noqa: F401
    LETTERS,
    TASKS,
    Question,
    Task,
    again,
    ask,
    chosen,
)

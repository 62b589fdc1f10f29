"""Where a stage's weights come from.

Its own checkpoint, if it has one, is restored by the loop. Otherwise the stage before's; and for
the first of `Run.stages`: `Run.init_from`, then `Run.pretrained`, then scratch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.core.files import write_text
from jaxasa.data import pipeline, tokens
from jaxasa.data.sounds import Bank
from jaxasa.hf import load, pretrained
from jaxasa.hf.weights import read_json
from jaxasa.models.asa import ASA
from jaxasa.train import checkpoint, state


def at(
    run: config.Run, stage: str, folder: Path, asa: ASA, mesh: jax.sharding.Mesh, classes
) -> state.State:
    """The state at step 0 of `stage` in the work folder `folder`.

    Where the stage has a checkpoint of its own, only shapes and shardings to restore it into.
    Raises ConfigError for a folder that is missing, of other classes or of another model.
    """
    options: config.Stage = getattr(run, stage)
    dtype = run.model.frozen_dtype
    shapes = jax.eval_shape(lambda key: asa.init(key, run.scenes.seconds), jax.random.key(0))
    target = state.shapes(shapes, options, mesh, frozen_dtype=dtype)
    if checkpoint.is_in(folder / "checkpoints" / stage):
        return target
    wanted = trees.flatten(target.params)
    index = run.stages.index(stage)
    given: Mapping
    if index:
        before = run.stages[index - 1]
        source = folder / "checkpoints" / before
        if not source.is_dir():
            raise ConfigError(f"{source}: no such folder, expected stage {before} before {stage}")
        _same_words(source, folder)
        given = _trained(source, *checkpoint.load(source), classes, wanted)
    elif run.init_from:
        params, meta, _ = load.load(run.init_from)
        parts = run.init_parts or config.PARTS
        if "decoder" in parts:
            _same_words(Path(run.init_from), folder)
        params = {part: leaves for part, leaves in params.items() if part in parts}
        needed = {path: t for path, t in wanted.items() if path.partition("/")[0] in parts}
        given = _trained(Path(run.init_from), params, meta, classes, needed)
    else:
        given = _pretrained(run, wanted)
    if not given:
        init = jax.jit(lambda key: asa.init(key, run.scenes.seconds))
        fresh = trees.flatten(jax.device_get(init(jax.random.key(run.seed))))
    else:
        fresh = _fresh(run, asa, {path: t for path, t in wanted.items() if path not in given})
    return state.create(trees.merge(given, fresh), options, mesh, frozen_dtype=dtype)


def tokenizer(run: config.Run, bank: Bank, folder: Path) -> tokens.Text:
    """Reads DIR/tokenizer.json; the first time it is that of the decoder in `Run.init_from`, that of
    the pretrained decoder, with the tokens that it lacks, or one trained on texts about the bank's
    classes.

    Raises ConfigError for ids beyond the rows of the decoder's embedding, and, where it is new,
    for questions or replies that find no room in its tokens.
    """
    path = folder / "tokenizer.json"
    rows = run.model.decoder.vocab_size
    if not path.is_file():
        clips = bank.clips("train")
        pairs = list(pipeline.corpus(run.scenes, clips, bank.classes, run.seed, run.questions))
        if run.init_from and "decoder" in (run.init_parts or config.PARTS):
            made = tokens.Text.load(load.tokenizer_of(run.init_from))
        elif run.pretrained.decoder:
            made, _ = tokens.adopt(pretrained.tokenizer_of(run.pretrained.decoder))
        else:
            texts = [text for pair in pairs for text in (*pair, pipeline.CAPTION_PROMPT)]
            made = tokens.train(texts, rows)
        made.check_rows(rows, path)
        pipeline.check_lengths(pairs, run.model, made)
        write_text(path, made.tokenizer.to_str(pretty=True))
    text = tokens.Text.load(path)
    text.check_rows(rows, path)
    return text


def _same_words(source: Path, folder: Path) -> None:
    theirs, ours = load.tokenizer_of(source), folder / "tokenizer.json"
    if read_json(theirs) != read_json(ours):
        raise ConfigError(
            f"{theirs}: other words than those of {ours}, which the texts would be written in"
        )


def _trained(
    source: Path, params: Mapping, meta: Mapping, classes: Sequence[str], wanted: Mapping
) -> dict:
    """Flat parameters of a checkpoint or export that fit this model; adapters may be absent."""
    if meta["classes"] != list(classes):
        raise ConfigError(f"{source}: classes {meta['classes']}, expected {list(classes)}")
    given = trees.flatten(params)
    faults = []
    for path in sorted({*given, *wanted}):
        there = tuple(given[path].shape) if path in given else None
        here = tuple(wanted[path].shape) if path in wanted else None
        if there != here and not (there is None and path.startswith("lora/")):
            faults.append(f"{path} is {there or 'not'} there, {here or 'not'} here")
    if faults:
        raise ConfigError(f"{source}: a checkpoint of another config: {'; '.join(faults)}")
    return given


def _pretrained(run: config.Run, wanted: Mapping) -> dict:
    """Flat parameters of the parts that `Run.pretrained` names."""
    given: dict[str, jax.Array] = {}
    for part in ("semantic", "decoder"):
        source = getattr(run.pretrained, part)
        if source:
            targets = {path: t for path, t in wanted.items() if path.startswith(f"{part}/")}
            given |= pretrained.load(source, part, run.model, targets)
    if run.pretrained.decoder:
        _, spelt = tokens.adopt(pretrained.tokenizer_of(run.pretrained.decoder))
        given |= pretrained.with_rows(given, spelt)
    return given


def _fresh(run: config.Run, asa: ASA, targets: Mapping) -> dict:
    """Flat parameters from scratch, made where they lie."""
    if not targets:
        return {}

    def make(key):
        made = trees.flatten(asa.init(key, run.scenes.seconds))
        return {path: made[path].astype(target.dtype) for path, target in targets.items()}

    lies = {path: target.sharding for path, target in targets.items()}
    return jax.jit(make, out_shardings=lies)(jax.random.key(run.seed))

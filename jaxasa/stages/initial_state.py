# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and the weights that a stage starts from.

A stage's own checkpoint, if it has one, is restored by the training loop. Otherwise weights come
from the previous stage's checkpoint; in the first of `Run.stages` from `Run.init_from`, or else
from `Run.pretrained`, or else from scratch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.core.files import atomic_write_text
from jaxasa.core.text_files import read_json
from jaxasa.core.workdir import WorkFolder, output_of
from jaxasa.data import text_only_scenes, tokens, transforms
from jaxasa.hf import load, pretrained
from jaxasa.models.asa import ASA
from jaxasa.stages.stage import Context
from jaxasa.train import checkpoint, state


@dataclass(frozen=True)
class WeightSource:
    """Source of initial weights: `parts` (of config.PARTS) of a checkpoint or export, or else the
    parts that `pretrained` names; all others are initialized from scratch."""

    checkpoint: Path | None = None
    parts: tuple[str, ...] = config.PARTS
    pretrained: config.Pretrained = config.Pretrained()

    @classmethod
    def of_run(cls, run: config.Run) -> "WeightSource":
        """Of the first stage."""
        folder = Path(run.init_from) if run.init_from else None
        return cls(folder, run.init_parts or config.PARTS, run.pretrained)

    @classmethod
    def of_stage(cls, run: config.Run, stage: str, work: WorkFolder) -> "WeightSource":
        """Of any stage. Raises ConfigError if the stage before it has no checkpoint."""
        index = run.stages.index(stage)
        if index == 0:
            return cls.of_run(run)
        previous = run.stages[index - 1]
        folder = work.checkpoint(previous)
        if not folder.is_dir():
            raise ConfigError(
                f"{folder}: no such folder, expected stage {previous} before {stage}: "
                + output_of(folder, "")
            )
        return cls(folder)


def tokenizer_for(
    path: Path, source: WeightSource, corpus: Iterable[tuple[str, str]], model: config.Model
) -> tokens.TextTokenizer:
    """Reads the run's tokenizer.json. If there is none, makes it first: it is that of the decoder
    in `source`, with the special tokens that it lacks, or else one trained on `corpus`.

    source: of the run's first stage. corpus: pairs of prompt and reply. Raises ConfigError for ids
    beyond the rows of the decoder's embedding, and for a new tokenizer with which texts of
    `corpus` are too long.
    """
    rows = model.decoder.vocab_size
    if not path.is_file():
        pairs = list(corpus)
        if source.checkpoint and "decoder" in source.parts:
            tokenizer = tokens.TextTokenizer.load(load.tokenizer_path(source.checkpoint))
        elif source.pretrained.decoder:
            pretrained_path = pretrained.tokenizer_path(source.pretrained.decoder)
            tokenizer, _ = tokens.extend_pretrained_tokenizer(pretrained_path)
        else:
            texts = [text for pair in pairs for text in (*pair, transforms.CAPTION_PROMPT)]
            tokenizer = tokens.train_tokenizer(texts, rows)
        tokenizer.check_embedding_rows(rows, path)
        text_only_scenes.check_text_lengths(pairs, model, tokenizer)
        atomic_write_text(path, tokenizer.backend.to_str(pretty=True))
    tokenizer = tokens.TextTokenizer.load(path)
    tokenizer.check_embedding_rows(rows, path)
    return tokenizer


def initial_state(
    context: Context[Any], own_checkpoint: Path, source: WeightSource, tokenizer: Path
) -> state.TrainState:
    """The state at step 0 of a stage.

    If `own_checkpoint` exists, only shapes and shardings to restore it into. tokenizer: path of the
    run's. Raises ConfigError for a source with another tokenizer, other classes or another model.
    """
    asa, stage, mesh = context.asa, context.stage, context.mesh
    seconds, dtype = context.scenes.seconds, context.model.frozen_dtype
    shapes = jax.eval_shape(lambda key: asa.init(key, seconds), jax.random.key(0))
    target = state.abstract_state(shapes, stage, mesh, frozen_dtype=dtype)
    if checkpoint.has_checkpoint(own_checkpoint):
        return target
    targets = trees.flatten(target.params)
    loaded = load_params(source, targets, context.model, context.classes, tokenizer)
    missing = {path: t for path, t in targets.items() if path not in loaded}
    if loaded:
        scratch = _init_sharded(asa, missing, seconds, context.seed)
    else:
        init = jax.jit(lambda key: asa.init(key, seconds))
        scratch = trees.flatten(jax.device_get(init(jax.random.key(context.seed))))
    return state.create(trees.merge(loaded, scratch), stage, mesh, frozen_dtype=dtype)


def load_params(
    source: WeightSource,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    model: config.Model,
    classes: Sequence[str],
    tokenizer: Path,
) -> dict:
    """Flat parameters that `source` has; targets: {path: shape with sharding} of all of them.

    Raises ConfigError as `initial_state` does.
    """
    folder = source.checkpoint
    if folder is None:
        return _load_pretrained(source.pretrained, targets, model)
    if "decoder" in source.parts:
        check_same_tokenizer(folder, tokenizer)
    if checkpoint.has_checkpoint(folder):
        params, meta = checkpoint.load(folder)
    else:
        params, meta, _ = load.load_model(folder)
    params = {part: leaves for part, leaves in params.items() if part in source.parts}
    targets = {path: t for path, t in targets.items() if path.partition("/")[0] in source.parts}
    return _check_params(folder, params, meta, classes, targets)


def check_same_tokenizer(checkpoint_folder: Path, path: Path) -> None:
    """Raises ConfigError if a checkpoint has another tokenizer than that of the run in `path`."""
    other = load.tokenizer_path(checkpoint_folder)
    if read_json(other) != read_json(path):
        raise ConfigError(f"{other}: another tokenizer than {path}, which encodes this run's texts")


def _check_params(
    source: Path, params: Mapping, meta: Mapping, classes: Sequence[str], targets: Mapping
) -> dict:
    """Flat parameters of a checkpoint or export that fit this model; adapters may be absent."""
    if meta["classes"] != list(classes):
        raise ConfigError(f"{source}: classes {meta['classes']}, expected {list(classes)}")
    flat = trees.flatten(params)
    faults = []
    for path in sorted({*flat, *targets}):
        there = tuple(flat[path].shape) if path in flat else None
        here = tuple(targets[path].shape) if path in targets else None
        if there != here and not (there is None and path.startswith("lora/")):
            faults.append(f"{path} is {there or 'not'} there, {here or 'not'} here")
    if faults:
        raise ConfigError(f"{source}: a checkpoint of another config: {'; '.join(faults)}")
    return flat


def _load_pretrained(
    sources: config.Pretrained, targets: Mapping[str, jax.ShapeDtypeStruct], model: config.Model
) -> dict:
    """Flat parameters of the parts that `Run.pretrained` names."""
    params: dict[str, jax.Array] = {}
    for part in ("semantic", "decoder"):
        source = getattr(sources, part)
        if source:
            of_part = {path: t for path, t in targets.items() if path.startswith(f"{part}/")}
            params |= pretrained.load(source, part, model, of_part)
    if sources.decoder:
        path = pretrained.tokenizer_path(sources.decoder)
        _, subtoken_ids = tokens.extend_pretrained_tokenizer(path)
        params |= pretrained.init_new_token_rows(params, subtoken_ids)
    return params


def _init_sharded(
    asa: ASA, targets: Mapping[str, jax.ShapeDtypeStruct], seconds: float, seed: int
) -> dict:
    """Flat parameters from scratch, each made on the devices that hold it."""
    if not targets:
        return {}

    def init(key):
        params = trees.flatten(asa.init(key, seconds))
        return {path: params[path].astype(target.dtype) for path, target in targets.items()}

    shardings = {path: target.sharding for path, target in targets.items()}
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))

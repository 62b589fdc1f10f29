# SPDX-License-Identifier: Apache-2.0
"""The training stages: text, spatial, align, sft, grpo.

    stage.py          TrainingStage, the definition of a stage; Context, its inputs
    registry.py       the list of stages
    text.py           stage 0: text pretraining of the decoder, without audio (tiny models only)
    spatial.py        stage 1: encoders; slot matching, SpecAugment
    align.py          stage 2: projector, on captions
    sft.py            stage 3: supervised fine-tuning of projector and adapters on questions
    grpo.py           stage 4: GrpoTrainer: rollout, rewards, advantages, updates of the adapters
    policy.py         losses of stage 4 (GRPO, Dr. GRPO, DAPO, GSPO, SAPO), advantages, KL, TIS
    rewards.py        rewards of stage 4: answer, format, evidence, length
    common.py         audio augmentation, reply loss, batches, evaluation
    initial_state.py  tokenizer and initial weights
    runner.py         trains a stage in a work folder

To add a stage: a file here with its STAGE, its line in registry.py, its options in
config/stages.py, and their field of config.Run.

Shapes:
    B  batch (scenes)          P  prompt length           S  slots and sources
    Q  questions per scene     L  new tokens of a reply   D  width
    G  completions per prompt  A  audio tokens            C  channels
    R  rows = B x Q x G        T  time frames or tokens   N  samples
"""

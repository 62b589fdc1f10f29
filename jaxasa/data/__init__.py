# SPDX-License-Identifier: Apache-2.0
"""Data: sound banks, simulated and imported scenes, questions, and the input pipeline of training.

From a sound bank to batches:

    sounds.py              Bank: mono clips, split by source recording; builds it
      corpora.py             lists files of ESC-50, FSD50K, folders, manifests
      debian.py              lists and downloads files of Debian packages
      procedural.py          synthesises sounds
      decode.py              sound file -> clips: mono, 16 kHz, trimmed, at one loudness
      dedup.py               assigns splits, joins duplicate recordings
    simulate.py            renders a data set of scenes in local processes
      shard_plan.py          ShardPlan: contents and paths of its shards
      beam.py                renders them on Apache Beam
      formats.py             Format and FORMATS: records, dcase, binaural
    records.py             Records: scenes on disk as ArrayRecord shards
    rir_bank.py            RirBank: stored room impulse responses
    dynamic_mixing.py      DynamicMixing: scenes mixed from clips and RIRs as they are read
    text_only_scenes.py    TextOnlyScenes: descriptions without audio; tokenizer corpus
    pipeline.py            Batches: data set -> examples -> batches, on grain
    transforms.py          the stages' transforms: element -> example
    features.py            log-mel, STFT, intensity vectors (JAX, on the device)

Data of others:

    import_scenes.py       converts DCASE, SO-Dataset and JSONL to records and questions
      dcase.py, dcase_csv.py  layout and event files of DCASE task 3
      so_dataset.py          questions of SO-Dataset and of JSONL files
    real_recordings.py     RealRecordings: imported recordings for stage 1
    imported_questions.py  ImportedQuestions, ImportedQaExamples: for stage 3
    foa_file.py            sound files of the user, FOA or binaural
    class_list.py          class names by number, from a file
    specs.py               loads a scene from a JSON file or a record

Text:

    questions/             question types of three levels, and their sampler
    scene_text.py          words for directions, distances and scenes; captions
    phrases.py             paraphrased captions
    synthetic_text.py      synthetic text tasks of stage 0
    tokens.py              TextTokenizer, chat template, prompts and replies
    replies.py             reads replies of models: reasoning, the chosen option
    quantities.py          reads directions, distances, times and counts in a text
"""

# SPDX-License-Identifier: Apache-2.0
"""Run by tests/hf/test_torch.py in another process: loads an export without jaxasa.

    python -I torch_reader.py WORK... [--whole]

WORK contains export, clips.npz and question.txt; logits and answers are written to WORK/found.npz
and WORK/found.json. --whole: also batches, refused audio, bfloat16, and WORK/saved, the folder that
transformers saves.
"""

import json
import sys
from pathlib import Path

sys.modules["jaxasa"] = None  # also if it is installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer  # noqa: E402

try:
    import jaxasa  # noqa: F401

    sys.exit("jaxasa can be imported here")
except ImportError:
    pass


def read(folder, work, whole):
    """Writes found.npz and found.json of the export `folder` in `work`."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model, report = AutoModel.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, dtype=torch.float32
    )
    clips = np.load(work / "clips.npz")
    question = (work / "question.txt").read_text()
    logits, answers = {}, {}
    for name in clips.files:
        inputs = processor(clips[name], question)
        with torch.no_grad():
            logits[name] = model(**inputs).logits[0].numpy()
        reply, sources = model.generate(**inputs, return_sources=True, threshold=0.0)
        answers[name] = {"reply": processor.parse_reply(reply[0])["reply"], "sources": sources[0]}
    facts = {
        "classes": config.classes,
        "ids": tokenizer(" where is the dog ?", add_special_tokens=False).input_ids,
        "answers": answers,
        "report": {name: sorted(map(str, keys)) for name, keys in report.items() if keys},
        "stock": [type(module).__name__ for module in model.modules()],
    }
    if whole:
        answers |= pairs(model, processor, clips["3"], question)
        facts["faults"] = faults(model, processor, clips, question)
        with torch.no_grad():
            half = model.to(torch.bfloat16)(**processor(clips["3"], question)).logits[0]
        logits["bfloat16"] = half.float().numpy()
        model.float().save_pretrained(work / "saved")
        processor.save_pretrained(work / "saved")
    np.savez(work / "found.npz", **logits)
    (work / "found.json").write_text(json.dumps(facts))


def pairs(model, processor, clip, question):
    """Replies to a batch of two prompts of different lengths, and to the second alone."""
    pair = model.generate(**processor([clip] * 2, [question, "how many ?"]))
    single = model.generate(**processor(clip, "how many ?"))[0]
    replies = [processor.parse_reply(row)["reply"] for row in (*pair, single)]
    return {"pair": replies[:2], "single": replies[2]}


def faults(model, processor, clips, question):
    """Messages of the errors for audio that is refused."""
    messages = []
    for audio, text, rate in (
        (clips["3"][:, :3], question, 16_000),
        (clips["3"], question, 48_000),
        ([clips["3"], clips["10"]], [question] * 2, 16_000),
        (np.zeros((31 * 16_000, 4)), question, 16_000),
    ):
        try:
            model.generate(**processor(audio, text, sampling_rate=rate))
        except ValueError as error:
            messages.append(str(error))
    return messages


options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
for folder in sys.argv[1:]:
    if folder not in options:
        print(folder, file=sys.stderr)
        read(f"{folder}/export", Path(folder), "--whole" in options)

# SPDX-License-Identifier: Apache-2.0
import argparse
import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from jaxasa import config
from jaxasa.acoustics import load_hrtf
from jaxasa.cli import main, options
from jaxasa.config import ConfigError
from jaxasa.core import provenance
from jaxasa.pipeline import demo, steps
from jaxasa.train import loop

SMOKE = ["--gin_file", "gin/run/smoke.gin"]
COMMANDS = [
    *(["demo"], ["train"], ["preflight"], ["plan"], ["ask"], ["export"], ["listen"], ["plot"]),
    *(["bench", part] for part in ("build", "run", "external", "score", "audit", "doa", "seld")),
    *(["bench", part] for part in ("ablate", "report", "speed")),
    *(["sounds"], ["simulate"], ["import"]),
]


def parsers(parser=None):
    """The parsers of all commands."""
    parser = parser or main.build_parser()
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in inner:
        for sub in action.choices.values():
            yield from parsers(sub)
    if not inner:
        yield parser


def run(capsys, *argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    code = main.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys, *argv) -> str:
    """The one line on stderr of a command that must fail with code 2."""
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert err.startswith("jaxasa: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture
def train_raises(monkeypatch):
    def set_error(error: BaseException):
        def train(*_):
            raise error

        monkeypatch.setattr(steps, "train", train)

    return set_error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_is_read_and_written(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main.main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "\nReads " in text and "\nWrites " in text
    assert f"  jaxasa {' '.join(command)} " in text


def test_examples_in_help_parse():
    """Each example is a command that its own parser takes."""
    names = []
    for parser in parsers():
        names.append(parser.get_default("command"))
        first, *rest = [shlex.split(line) for line in parser.epilog.split("\n")[1:]]
        assert " ".join(first).startswith(f"jaxasa {names[-1]} ")
        for example in (first, *rest):
            words, _ = options.split_gin(example[1:])
            args = main.build_parser().parse_args(words)
            assert example[0] == "jaxasa" and callable(args.run)
        assert callable(parser.get_default("run"))
    assert names == [" ".join(command) for command in COMMANDS]


def test_contracts_of_the_command_line():
    """Forms that scripts rely on."""
    for line in (
        "ask CHECKPOINT a.wav QUESTION --options A B C D --json A.json",
        "bench score DIR answers.jsonl",
        "bench seld REFERENCE PREDICTION",
        "demo --workdir DIR --gin_file a.gin --gin_file b.gin",
        "plan --gin_file a.gin --topology v5e:2x2 --json A.json",
        "simulate --benchmark --json A.json",
        "listen IN OUT",
    ):
        assert main.build_parser().parse_args(line.split()).command == " ".join(
            word for word in line.split() if word.isalpha() and word.islower()
        )


def test_choices_are_those_of_the_registries():
    """They are imported late, so a renamed registry would show only when somebody asks for help."""
    lazy = [
        action.choices
        for parser in parsers()
        for action in parser._actions
        if isinstance(action.choices, options.RegistryNames)
    ]
    assert len(lazy) >= 6
    for choices in lazy:
        assert len(list(choices)) >= 2 and next(iter(choices)) in choices and "x" not in choices


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    made_by = provenance.made_by()
    expected = f"jaxasa {made_by['version']} (commit {made_by['commit'][:12]})\n"
    assert capsys.readouterr().out == expected


def test_split_gin():
    rest, bindings = options.split_gin(
        ["train", "--gin_file", "a.gin", "--gin.Run.seed=3", "--gin_file", "b.gin"]
    )
    assert rest == ["train", "--gin_file", "a.gin", "--gin_file", "b.gin"]
    assert bindings == ["Run.seed=3"]
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        options.split_gin(["--gin.Run.seed", "3"])


@pytest.fixture
def rendered(monkeypatch, tmp_path):
    """Calls of steps.render_scenes, which writes a manifest of three scenes."""
    calls = []

    def render_scenes(run, work, split, *how):
        calls.append((split, *how))
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / "manifest.json").write_text('{"count": 3}')
        return out

    monkeypatch.setattr(steps, "render_scenes", render_scenes)
    return calls


def test_simulate_passes_the_format_the_runner_and_its_options_on(capsys, tmp_path, rendered):
    command = ["simulate", "--workdir", tmp_path / "w", *SMOKE, "--split", "dev"]
    assert run(capsys, *command)[0] == 0
    assert run(capsys, *command, "--format", "dcase")[0] == 0
    beam = ["--direct_num_workers=2", "--project", "p"]
    assert run(capsys, *command, "--runner", "DirectRunner", "--", *beam)[0] == 0
    assert rendered == [
        ("dev", None, None, []),
        ("dev", "dcase", None, []),
        ("dev", None, "DirectRunner", beam),
    ]
    assert "--runner NAME" in fails(capsys, *command, "--", *beam)


def test_dry_run_prints_estimates_and_writes_nothing(capsys, tmp_path, monkeypatch, rendered):
    from jaxasa.data import simulate

    calls = []

    def estimate(scenes, bank, split, seed, count, format):
        calls.append((bank, split, seed, count, format))
        row = {"scenes": count, "hours": 4000.0, "shards": 36_000, "bytes": 1_843_200_000_000}
        return row | {"core_hours": 12.34, "core_hours_95": 0.1, "sample": 40}

    monkeypatch.setattr(simulate, "estimate", estimate)
    where = tmp_path / "w"
    code, out, _ = run(
        capsys, "simulate", "--workdir", where, *SMOKE, "--dry_run", "--split", "train",
        "--gin.Scenes.train=3600000", "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert code == 0 and calls == [(where / "sounds", "train", 0, 3_600_000, "records")]
    for text in ("3600000 scenes", "4000.00 hours", "36000 shards", "1,843,200.0 MB", "12.3 core"):
        assert text in out
    assert json.loads((tmp_path / "plan.json").read_text())["train"]["shards"] == 36_000
    assert not rendered and not where.exists()


def test_import_names_what_it_refuses(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name, channels in (("a", 4), ("b", 2)):
        soundfile.write(
            tmp_path / f"{name}.wav", 0.1 * rng.standard_normal((4800, channels)), 48_000
        )
    lines = [{"audio": f"{n}.wav", "question": "Where?", "answer": "left"} for n in "ab"]
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out_json = tmp_path / "import.json"
    command = ["import", "jsonl", questions, tmp_path / "out"]
    code, out, _ = run(capsys, *command, "--json", out_json)
    assert code == 0 and "1 recordings, 1 questions" in out
    assert "refused: 1 x has 2 channels" in out
    (refused,) = json.loads(out_json.read_text())["refused"]
    assert refused.endswith("b.wav")
    missing = fails(capsys, *command, "--classes", tmp_path / "none.txt")
    assert "no such file, expected a class name in each line" in missing
    line = fails(capsys, "import", "dcase", tmp_path, tmp_path / "other")
    assert "foa_dev" in line and str(tmp_path) in line


URL = "gs://bucket/run"


@pytest.mark.parametrize(
    "name, argv",
    [
        ("--workdir", ["demo", "--workdir", URL]),
        ("--workdir", ["simulate", "--workdir=s3://bucket/run", *SMOKE]),
        ("--workdir", ["bench", "report", "--workdir", URL]),
        ("--json", ["plan", "--topology", "v5e:2x2", "--json", "https://a.b/c.json"]),
        ("--gin_file", ["plan", "--topology", "v5e:2x2", "--gin_file", "gs://bucket/a.gin"]),
        ("--checkpoint", ["bench", "run", "--workdir", "x", "--checkpoint", URL]),
        ("--ablation", ["bench", "report", "--workdir", "x", "--ablation", URL]),
        ("checkpoint", ["ask", URL, "a.wav", "Where?"]),
        ("audio", ["ask", "x", "http://a.b/a.wav", "Where?"]),
        ("checkpoint", ["export", URL, "out"]),
        ("out", ["export", "x", "hf://org/name"]),
        ("source", ["import", "dcase", URL, "out"]),
        ("OUT", ["listen", "x", URL]),
        ("--sounds", ["plot", "out.png", "--scene", "x", "--sounds", URL]),
        ("Sounds.bank", ["--gin.Sounds.bank='folder:gs://bucket/sounds'"]),
        ("Run.init_from", [f"--gin.Run.init_from='{URL}'"]),
        ("Pretrained.semantic", ["--gin.Pretrained.semantic='gs://bucket/whisper'"]),
        ("Pretrained.decoder", ["--gin.Pretrained.decoder='https://huggingface.co/Qwen/Qwen3'"]),
        ("SftStage.qa_datasets", [f"--gin.SftStage.qa_datasets=('x', '{URL}')"]),
        ("SpatialStage.real_recordings", [f"--gin.SpatialStage.real_recordings=('{URL}',)"]),
    ],
)
def test_urls_are_refused_by_name(capsys, tmp_path, monkeypatch, name, argv):
    monkeypatch.chdir(tmp_path)
    command = ["plan", "--topology", "v5e:2x2", *SMOKE] if argv[0].startswith("--gin") else []
    line = fails(capsys, *command, *argv)
    url = next(
        part for word in argv if "://" in word for part in re.findall(r"\w+://[^'\"]+", word)
    )
    assert line.startswith(f"jaxasa: {name} is '{url}', expected a local path: mount")
    assert not list(tmp_path.iterdir())


def test_the_url_of_an_hrtf_is_refused():
    with pytest.raises(ConfigError, match="HRTF is 'https://a.b/h.sofa', expected a local path"):
        load_hrtf.load_hrtf("https://a.b/h.sofa")


def test_names_on_the_hub_and_local_paths_are_no_urls():
    config.Pretrained("openai/whisper-tiny", "/data/qwen:2")
    config.check_local_path("--workdir", "C:/runs/a")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run's folder with sounds and without scenes."""
    work = tmp_path_factory.mktemp("begun")
    assert main.main(["sounds", "--workdir", str(work), *SMOKE]) == 0
    return work


FLOW = [
    # (command, what was not made before it, the command that makes it)
    ("simulate", "sounds", "sounds"),
    ("simulate --split dev --dry_run", "sounds", "sounds"),
    ("train text", "sounds", "sounds"),
    ("bench build", "scenes/benchmark", "simulate --split benchmark"),
    ("bench build --split dev", "scenes/dev", "simulate --split dev"),
    ("bench run", "checkpoints", "train sft"),
    ("bench audit", "benchmark", "bench build"),
    ("bench audit --split dev", "dev/benchmark", "bench build --split dev"),
    ("bench doa", "checkpoints", "train spatial"),
    ("bench report", "results.json", "bench run"),
    ("bench report --split dev", "dev/results.json", "bench run --split dev"),
]


BINAURAL = ["--gin.Spatial.format='binaural'", "--gin.Spatial.features='interaural'"]


def names_command(line: str, command: str, work) -> bool:
    """Whether an error names `command` as it has to be called for the folder `work`."""
    command, _, split = command.partition(" --split ")
    split = f" --split {split}" if split else ""
    return line.endswith(f"the output of `jaxasa {command} --workdir {work}{split}`\n")


@pytest.mark.parametrize("command, lacking, first", FLOW)
def test_step_before_the_one_it_needs(capsys, tmp_path, command, lacking, first):
    gin = [] if "report" in command else SMOKE
    line = fails(capsys, *command.split(), "--workdir", tmp_path, *gin)
    assert line.startswith(f"jaxasa: {tmp_path}/{lacking}") and names_command(line, first, tmp_path)


@pytest.mark.parametrize(
    "stage, bindings, lacking, first",
    [
        ("spatial", [], "scenes/train", "simulate --split train"),
        ("spatial", ["--gin.Scenes.rir_rooms=2"], "rirs", "simulate --split train"),
        ("grpo", BINAURAL, "binaural/train", "simulate --split train"),
    ],
)
def test_training_before_scenes(capsys, tmp_path, begun, stage, bindings, lacking, first):
    (tmp_path / "sounds").symlink_to(begun / "sounds")
    line = fails(capsys, "train", stage, "--workdir", tmp_path, *SMOKE, *bindings)
    assert line.startswith(f"jaxasa: {tmp_path}/{lacking}") and names_command(line, first, tmp_path)


@pytest.mark.parametrize(
    "command", ["export {} out", "ask {} a.wav Where?", "bench run --workdir w --checkpoint {}"]
)
def test_use_of_a_checkpoint_before_its_training(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "sft"
    line = fails(capsys, *command.format(folder).split())
    assert line.startswith(f"jaxasa: {folder}: ")
    assert names_command(line, "train sft", tmp_path / "run")


def test_use_of_scenes_and_suites_before_they_are_made(capsys, tmp_path):
    scenes, suite = tmp_path / "scenes" / "dev", tmp_path / "benchmark"
    for command in (["listen", scenes, "a.wav"], ["plot", "a.png", "--scene", scenes]):
        assert names_command(fails(capsys, *command), "simulate --split dev", tmp_path)
    line = fails(capsys, "bench", "score", suite, tmp_path / "answers.jsonl")
    assert names_command(line, "bench build", tmp_path)


def test_unknown_gin_name(capsys, tmp_path):
    line = fails(capsys, "train", "sft", "--workdir", tmp_path, *SMOKE, "--gin.Decoder.widht=8")
    assert "widht" in line and "width" in line
    assert not list(tmp_path.iterdir())


def test_missing_gin_file(capsys, tmp_path):
    assert "smok.gin" in fails(capsys, "demo", "--workdir", tmp_path, "--gin_file", "smok.gin")


def test_demo_resumes_with_the_config_of_its_folder(capsys, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(demo, "run_demo", lambda run, folder, text: ran.append(run) or {})
    first = ["train", "sft", "--workdir", tmp_path, *SMOKE, "--gin.Run.seed=5"]
    monkeypatch.setattr(steps, "train", lambda *_: None)
    assert run(capsys, *first)[0] == 0
    assert run(capsys, "demo", "--workdir", tmp_path, "--gin.SftStage.steps=7")[0] == 0
    assert (ran[0].name, ran[0].seed, ran[0].sft.steps) == ("smoke", 5, 7)


def test_gin_bindings_of_a_command_without_config(capsys, tmp_path):
    line = fails(capsys, "export", tmp_path, tmp_path / "out", "--gin.Run.seed=3")
    assert "reads no gin file" in line


def test_workdir_of_another_model(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "train", lambda *_: None)
    train = ["train", "sft", "--workdir", tmp_path, *SMOKE]
    assert run(capsys, *train)[0] == 0
    assert run(capsys, *train)[0] == 0
    line = fails(capsys, *train, "--gin.Decoder.layers=7", "--gin.Run.seed=5")
    assert "model.decoder.layers was" in line and "is 7" in line
    assert "seed was" in line and "sounds" not in line
    # How many steps to train is no property of the folder.
    assert run(capsys, *train, "--gin.SftStage.steps=7")[0] == 0


def test_workdir_keeps_its_config(capsys, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "train", lambda run, *_: seen.append(run.seed))
    assert run(capsys, "train", "sft", "--workdir", tmp_path, *SMOKE, "--gin.Run.seed=77")[0] == 0
    assert run(capsys, "train", "sft", "--workdir", tmp_path)[0] == 0
    assert seen == [77, 77]


def test_workdir_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = fails(capsys, "train", "sft", "--workdir", tmp_path / "file" / "x", *SMOKE)
    assert str(tmp_path / "file") in line


def test_missing_inputs(capsys, tmp_path):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.ones((16_000, 4)) * 0.1, 16_000)
    line = fails(capsys, "ask", tmp_path / "none", audio, "Where is the dog?")
    assert str(tmp_path / "none") in line
    assert "none" in fails(capsys, "export", tmp_path / "none", tmp_path / "out")
    assert "none" in fails(capsys, "bench", "score", tmp_path / "none", tmp_path / "p.jsonl")
    assert str(tmp_path) in fails(capsys, "bench", "report", "--workdir", tmp_path)
    assert "sounds" in fails(
        capsys, "simulate", "--split", "train", "--workdir", tmp_path / "w", *SMOKE
    )
    assert str(tmp_path) in fails(capsys, "bench", "run", "--workdir", tmp_path / "w", *SMOKE)


@pytest.fixture
def foa_model(tiny, monkeypatch):
    """Any checkpoint is that of a model of FOA audio."""
    from jaxasa.hf import load

    meta = {"model": dataclasses.asdict(tiny.model)}
    monkeypatch.setattr(load, "read_meta", lambda folder: meta)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.ones((16_000, 2)), "2 channels"),
        (np.full((16_000, 4), np.nan), "not finite"),
        (np.ones((0, 4)), "empty"),
    ],
    ids=["stereo", "nan", "empty"],
)
def test_audio_that_cannot_be_used(capsys, tmp_path, foa_model, samples, words):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, samples, 16_000, subtype="FLOAT")
    line = fails(capsys, "ask", tmp_path, audio, "Where is the dog?")
    assert str(audio) in line and words in line


def test_audio_file_that_is_missing_or_no_audio(capsys, tmp_path, foa_model):
    audio = tmp_path / "a.wav"
    assert str(audio) in fails(capsys, "ask", tmp_path, audio, "Where is the dog?")
    audio.write_text("no audio")
    assert str(audio) in fails(capsys, "ask", tmp_path, audio, "Where is the dog?")


def test_json_holds_the_result(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "train", lambda *_: None)
    out = tmp_path / "out.json"
    code, _, _ = run(capsys, "train", "sft", "--workdir", tmp_path / "w", *SMOKE, "--json", out)
    assert code == 0
    assert json.loads(out.read_text())["checkpoint"] == str(tmp_path / "w" / "checkpoints" / "sft")
    line = fails(capsys, "train", "sft", "--workdir", tmp_path, *SMOKE, "--json", "/no/such/f.json")
    assert "/no/such" in line


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("two\nlines"), 2, "jaxasa: two lines\n"),
        (loop.Preempted("sft: stopped and saved at step 7"), 75, "saved at step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied"),
    ],
)
def test_exit_codes(capsys, tmp_path, train_raises, error, code, words):
    train_raises(error)
    found, _, err = run(capsys, "train", "sft", "--workdir", tmp_path, *SMOKE)
    assert found == code and words in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(2, "No such file", "z")])
def test_unexpected_exception_is_raised(tmp_path, train_raises, error):
    train_raises(error)
    with pytest.raises(type(error)):
        main.main(["train", "sft", "--workdir", str(tmp_path), *SMOKE])


def test_sigterm_outside_training(tmp_path):
    """What a step has done stays, so the code is the one that launchers start again."""
    code = (
        "import os, signal, sys\n"
        "from jaxasa.cli import data, main\n"
        "data.simulate = lambda args: os.kill(os.getpid(), signal.SIGTERM) or {}\n"
        f"sys.exit(main.main(['simulate', '--workdir', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75 and done.stderr.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) != main._stop


def test_options_that_would_be_ignored_are_refused(capsys, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("dog\n")
    command = ["simulate", "--workdir", tmp_path / "w", *SMOKE]
    assert "--format binaural" in fails(capsys, *command, "--hrtf", "head.sofa")
    assert "no option" in fails(capsys, "simulate", "--benchmark", "--format", "dcase")
    scene = ["plot", tmp_path / "room.png", "--scene", tmp_path / "scene.json"]
    assert "expected no --rt60 with it" in fails(capsys, *scene, "--rt60", "0.4")
    assert "expected --scene" in fails(capsys, "plot", tmp_path / "room.png", "--index", "1")
    assert "no --runner" in fails(capsys, *command, "--dry_run", "--runner", "DirectRunner")
    mixed = ("--split", "train", "--gin.Scenes.rir_rooms=2", "--runner", "DirectRunner")
    assert "--runner is 'DirectRunner', expected none" in fails(capsys, *command, *mixed)
    for layout, option, value in (
        ("jsonl", "--seconds", "5"),
        ("so", "--seconds", "5"),
        ("jsonl", "--split", "train"),
        ("jsonl", "--classes", names),
    ):
        line = fails(capsys, "import", layout, tmp_path, tmp_path / "new", option, value)
        assert option.strip("-") in line and f"none with the layout {layout}" in line
    line = fails(capsys, "import", "so", tmp_path, tmp_path / "new", "--classes", names)
    assert "annotations" in line


@pytest.mark.parametrize(("failed", "code"), [({}, 0), ({"p1": "lost"}, 3)])
def test_failed_variant_exits_with_3(capsys, tmp_path, monkeypatch, failed, code):
    from jaxasa.pipeline.ablation import runner

    def fake(load, folder, dry_run):
        run_of, _ = load(("Ablation.projector_steps=7",))
        assert run_of.ablation.projector_steps == 7 and run_of.sft.steps == 9 and dry_run
        return {"failed": failed}

    monkeypatch.setattr(runner, "ablate", fake)
    words = ("bench", "ablate", "--workdir", tmp_path, "--dry_run", "--gin.SftStage.steps=9")
    assert run(capsys, *words)[0] == code
    line = fails(capsys, "bench", "report", "--workdir", tmp_path, "--ablation", tmp_path / "no")
    assert "expected the output of `jaxasa bench ablate`" in line


def test_a_stage_outside_run_stages_is_refused(capsys, tmp_path):
    words = ("--workdir", tmp_path, "--gin_file", "gin/run/base.gin")
    line = fails(capsys, "train", "text", *words)
    assert "stage is 'text', expected one of Run.stages (spatial, align, sft, grpo)" in line

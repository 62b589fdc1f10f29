# SPDX-License-Identifier: Apache-2.0
"""The READMEs: their links, commands, options, config fields and file names exist."""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxasa import config
from jaxasa.cli import main, options

ROOT = Path(__file__).resolve().parents[1]
DOCS = [
    ROOT / "README.md",
    *(ROOT / ".github").glob("*.md"),
    *(path for top in ("gin", "launch", "jaxasa", "tests") for path in (ROOT / top).rglob("*.md")),
]
FIELDS = {
    name: {field.name for field in dataclasses.fields(kind)}
    for name, kind in vars(config).items()
    if dataclasses.is_dataclass(kind)
}
# Options of pip, pytest, gcloud ... and of the launch scripts.
OTHER_OPTIONS = {"--direct_num_workers", "--tpu", "--zone", "--cluster", "--workload", "--image"}
OTHER_OPTIONS |= {"--nodes", "--gpus"}

doc = pytest.mark.parametrize("path", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def code_lines(text: str) -> Iterator[str]:
    """Lines of the code blocks without a language."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if not language:
            yield from re.sub(r"\\\n\s*", "", block).splitlines()


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and the parsers of its commands, at any depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_front_page_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@doc
def test_links_exist(path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", path.read_text("utf-8")):
        if "://" not in target:
            file = (path.parent / target) if target else path
            assert file.exists(), target
            assert not anchor or anchor[1:] in anchors(file), f"{target}{anchor}"


@doc
def test_commands_parse(path):
    """`jaxasa ...` in code blocks; inline, only the command's name is checked."""
    text = path.read_text("utf-8")
    for line in code_lines(text):
        if re.match(r"(.* )?jaxasa [a-z]", line) and not re.match(r"bash|run|from", line):
            words = shlex.split(line[line.index("jaxasa ") :], comments=True)[1:]
            words = words[: words.index("&")] if "&" in words else words
            arguments, _ = options.split_gin(words)
            try:
                main.build_parser().parse_args(arguments)
            except SystemExit:
                pytest.fail(f"does not parse: {line}")
    names = {parser.prog for parser in parsers(main.build_parser())}
    for command in re.findall(r"`(jaxasa(?: [a-z_]+)+)", text):
        assert any(command == name or command.startswith(f"{name} ") for name in names - {"jaxasa"})


@doc
def test_methods_of_the_export_exist(path):
    source = "".join(file.read_text("utf-8") for file in (ROOT / "jaxasa/hf/torch").glob("*.py"))
    for method in re.findall(r"\b(?:processor|model)\.(\w+)\(", path.read_text("utf-8")):
        assert f"def {method}(" in source, method


@doc
def test_options_exist(path):
    known = {
        option
        for parser in parsers(main.build_parser())
        for option in parser._option_string_actions
    }
    for option in re.findall(r"`(--[\w-]+)(?![\w.-])", path.read_text("utf-8")):
        assert option in known | OTHER_OPTIONS, option


@doc
def test_config_fields_exist(path):
    for name, field in re.findall(
        r"(?:`|--gin\.|config\.)([A-Z]\w+)\.(\w+)", path.read_text("utf-8")
    ):
        if name in FIELDS:
            assert field in FIELDS[name], f"{name}.{field}"


@doc
def test_files_exist(path):
    text = path.read_text("utf-8")
    for name in re.findall(r"\b((?:gin|jaxasa|launch|tests)/[\w./]+\.(?:gin|py|sh|md))\b", text):
        assert (ROOT / name).exists(), name
    folders = [
        path.parent,
        ROOT,
        ROOT / "jaxasa",
        ROOT / "tests",
        ROOT / "gin",
        ROOT / "gin" / "data",
    ]
    for name in re.findall(r"`([\w/]+\.(?:gin|py|sh))`", text):
        if name != "config.gin":  # written into work folders
            assert any((folder / name).exists() for folder in folders), name

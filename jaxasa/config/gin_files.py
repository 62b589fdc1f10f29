# SPDX-License-Identifier: Apache-2.0
"""Gin files and command-line bindings to one checked `config.Run`.

A gin file says `from __gin__ import dynamic_registration` and `from jaxasa import config`,
then binds fields of the dataclasses of `config`. Gin itself checks neither names until a
class is called nor any type, so this module reads the files with gin's parser, checks names,
types and repetitions (each error has its file and line), and gives gin the bindings that won.

Order: files in the order given, an include at the place where it stands, command-line
bindings last; later bindings win, but one file may bind a name only once.

A file named on the command line is looked for in the current folder and then in jaxasa's gin
folder ("run/demo.gin" or "gin/run/demo.gin"); an included one beside the file that names it and
then in jaxasa's gin folder, so that no file of the caller changes the meaning of jaxasa's own.
"""

import dataclasses
import difflib
import re
import tokenize
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import gin
from gin import config_parser
from jaxasa import config
from jaxasa.config import ConfigError, check_local_path

_HEADER = "from __gin__ import dynamic_registration\nfrom jaxasa import config\n"
_IMPORTS = ("__gin__.dynamic_registration", "jaxasa.config")
_PACKAGE = Path(__file__).resolve().parents[1]


def find_gin_folder(package: Path) -> Path:
    """jaxasa's gin files: gin/ of the repository around `package`, or gin/ in an installed one."""
    root = package.parent
    # Without this test, site-packages/gin would be taken: that is the package gin-config.
    is_repository = (root / "pyproject.toml").is_file() and (root / "gin/run/demo.gin").is_file()
    return root / "gin" if is_repository else package / "gin"


GIN_FOLDER = find_gin_folder(_PACKAGE)
CLASSES: dict[str, type] = {
    name: value
    for name, value in vars(config).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
}


@dataclasses.dataclass(frozen=True)
class _Reference:
    """`@config.Model()` or `%MACRO`; its repr is its gin spelling."""

    name: str
    mark: str = "@"

    def __repr__(self) -> str:
        return f"{self.mark}{self.name}" + ("()" if self.mark == "@" else "")


@dataclasses.dataclass(frozen=True)
class Binding:
    """One binding: owner and field (`Decoder`, `width`), parsed value, `FILE:LINE`.

    A macro (`WIDTH = 64`) has no owner.
    """

    owner: str
    field: str
    value: object
    location: str

    @property
    def name(self) -> str:
        return f"config.{self.owner}.{self.field}" if self.owner else self.field


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        if not evaluate:
            raise SyntaxError(f"@{scoped_configurable_name} needs () behind it")
        return _Reference(scoped_configurable_name)

    def macro(self, macro_name):
        return _Reference(macro_name, "%")


def load(files: Sequence[str], bindings: Sequence[str] = ()) -> tuple[config.Run, str]:
    """Builds the run that `files` and `bindings` ("Decoder.width=64") describe.

    Returns (run, text): `text` is a gin file with every bound value, which loads again to an
    equal run. Raises ConfigError, one line, for a file not found, wrong syntax, an unknown
    class or field, a name bound twice in one file, a wrong type or value, and required fields
    left unbound (all of them named).
    """
    bound = read(files, bindings)
    missing = sorted(set(_missing("Run", bound)))
    if missing:
        raise ConfigError(f"{' '.join(files) or 'no gin file'}: not bound: {', '.join(missing)}")
    text = _HEADER + "".join(f"{b.name} = {b.value!r}\n" for b in bound.values())
    gin.clear_config(clear_constants=True)
    try:
        gin.parse_config(text)
        run = gin.get_configurable(config.Run)()
        return run, gin.config_str()
    except ConfigError as error:
        # gin appends the chain of calls; the first line is ours.
        raise ConfigError(str(error).splitlines()[0]) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(files)}: {str(error).strip().splitlines()[0]}") from None
    finally:
        gin.clear_config(clear_constants=True)


def read(files: Sequence[str], bindings: Sequence[str] = ()) -> dict[str, Binding]:
    """Name -> winning binding of `files` (with what they include) and `bindings`, checked.

    Raises ConfigError as `load` does, but for required fields: parts of a run may be read.
    """
    bound: dict[str, Binding] = {}
    for name in files:
        for binding in _read_file(name, "--gin_file", ()):
            bound[binding.name] = binding
    for text in bindings:
        for binding in _command_line(text):
            # A name alone is a macro; one that no file knows would change nothing, silently.
            if not binding.owner and binding.name not in bound:
                raise ConfigError(f"{binding.location}: expected --gin.CLASS.FIELD=VALUE")
            bound[binding.name] = binding
    for binding in bound.values():
        if binding.owner:
            _check_type(binding, bound)
    return bound


def _find(name: str, location: str, folder: Path) -> Path:
    """Path of a gin file, in `folder` or in jaxasa's gin folder ("gin/" may lead)."""
    check_local_path(location, name)
    short = name.removeprefix("gin/")
    for path in (folder / name, GIN_FOLDER / short):
        if path.is_file():
            return path
    names = {path.relative_to(GIN_FOLDER).as_posix() for path in GIN_FOLDER.rglob("*.gin")}
    raise ConfigError(f"{location}: no file {name!r}" + _near(short, names))


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    return f"; near: {', '.join(near)}" if near else ""


def _read_file(name: str, location: str, including: tuple[Path, ...]) -> Iterator[Binding]:
    """The bindings of a file in order; `including`: the files that include it, outermost first."""
    path = _find(name, location, including[-1].parent if including else Path()).resolve()
    if path in including:
        raise ConfigError(f"{location}: {name!r} includes itself")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{location}: cannot read {name!r}: {error}") from None
    seen: dict[str, str] = {}
    for statement in _statements(text, name):
        place = f"{name}:{statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _read_file(statement.filename, place, (*including, path))
        elif isinstance(statement, config_parser.ImportStatement):
            if statement.module not in _IMPORTS:
                raise ConfigError(f"{place}: import of {statement.module}, expected only config")
        elif isinstance(statement, config_parser.BindingStatement):
            binding = _binding(statement, place)
            if binding.name in seen:
                raise ConfigError(
                    f"{place}: {binding.name} is bound already at {seen[binding.name]}"
                )
            seen[binding.name] = place
            yield binding


def _command_line(text: str) -> Iterator[Binding]:
    name, equals, value = text.partition("=")
    name = name.strip()
    if "." in name and not name.startswith("config."):
        name = f"config.{name}"
    location = f"--gin.{text}"
    if not equals or "\n" in text:
        raise ConfigError(f"{location!r}: expected --gin.NAME=VALUE, one line")
    for statement in _statements(f"{name} = {value}", location):
        yield _binding(statement, location)


def _statements(text: str, name: str) -> list:
    line: int | str | None = "?"
    try:
        return list(config_parser.ConfigParser(text, _Delegate()))
    except SyntaxError as error:
        line, reason = error.lineno, error.msg
    except tokenize.TokenError as error:
        line, reason = error.args[1][0], error.args[0]
    except (TypeError, ValueError) as error:
        reason = str(error)
    reason = re.sub(r"malformed node.*?>\s*|\s+", " ", str(reason)).strip()
    if name.startswith("--gin."):
        raise ConfigError(f"{name}: wrong syntax: {reason} (strings need quotes)")
    raise ConfigError(f"{name}:{line}: wrong syntax: {reason}")


def _binding(statement: config_parser.BindingStatement, location: str) -> Binding:
    if statement.scope:
        raise ConfigError(f"{location}: scope {statement.scope}/, expected none")
    if not statement.arg_name:
        return Binding("", statement.selector, statement.value, location)
    owner = _class(statement.selector, location)
    fields = [f.name for f in dataclasses.fields(CLASSES[owner])]
    if statement.arg_name not in fields:
        near = _near(statement.arg_name, fields) or f"; it has: {', '.join(fields)}"
        raise ConfigError(f"{location}: {owner} has no field {statement.arg_name}{near}")
    return Binding(owner, statement.arg_name, statement.value, location)


def _class(selector: str, location: str) -> str:
    """Name of the class that `selector` (`config.Decoder`) names."""
    module, _, owner = selector.rpartition(".")
    if module != "config" or owner not in CLASSES:
        near = _near(selector, [f"config.{name}" for name in CLASSES])
        raise ConfigError(f"{location}: unknown class {selector}{near}")
    return owner


def _literal(value, bound: Mapping[str, Binding], location: str):
    """The value of a macro (`%WIDTH`), or `value` itself."""
    for _ in range(8):
        if not (isinstance(value, _Reference) and value.mark == "%"):
            return value
        if value.name not in bound:
            macros = [b.name for b in bound.values() if not b.owner]
            raise ConfigError(
                f"{location}: %{value.name} is bound nowhere{_near(value.name, macros)}"
            )
        value = bound[value.name].value
    raise ConfigError(f"{location}: {value!r} refers to itself")


def _check_type(binding: Binding, bound: Mapping[str, Binding]) -> None:
    owner = CLASSES[binding.owner]
    expected = typing.get_type_hints(owner)[binding.field]
    if not _fits(binding.value, expected, bound, binding.location):
        shown = _literal(binding.value, bound, binding.location)
        name = getattr(expected, "__name__", "") if isinstance(expected, type) else ""
        if isinstance(expected, types.GenericAlias):
            name = str(expected)
        raise ConfigError(
            f"{binding.location}: {binding.owner}.{binding.field} is {shown!r}, "
            f"expected {f'@config.{name}()' if name in CLASSES else name}"
        )


def _fits(value, expected, bound: Mapping[str, Binding], location: str) -> bool:
    value = _literal(value, bound, location)
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        is_reference = isinstance(value, _Reference)
        return is_reference and issubclass(CLASSES[_class(value.name, location)], expected)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, inner[0], bound, location) and _fits(v, inner[1], bound, location)
            for k, v in value.items()
        )
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(
            _fits(v, kind, bound, location) for v, kind in zip(value, kinds, strict=True)
        )
    if expected in (int, float):
        kinds = (int,) if expected is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, expected)


def _missing(owner: str, bound: Mapping[str, Binding]) -> Iterator[str]:
    """Names of required fields of `owner`, and of classes it refers to, that nothing binds."""
    for field in dataclasses.fields(CLASSES[owner]):
        binding = bound.get(f"config.{owner}.{field.name}")
        if binding is None:
            absent = dataclasses.MISSING
            if field.default is absent and field.default_factory is absent:
                yield f"{owner}.{field.name}"
            continue
        value = _literal(binding.value, bound, binding.location)
        if isinstance(value, _Reference):
            yield from _missing(_class(value.name, binding.location), bound)

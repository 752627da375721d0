"""Configuration files: TOML, read strictly into a frozen type."""

from __future__ import annotations

import ipaddress
import json
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from attester.errors import ConfigError, KeyFileError

_MAX_CONFIG_BYTES = 256 * 1024

T = TypeVar("T", bound=Struct)


def read_toml(path: Path, kind: type[T], make_with: str) -> T:
    """
    Read a configuration file strictly.

    Raises:
        ConfigError: the file is missing, too large or not TOML, or a setting is unknown or out
            of range; the message names it.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read(_MAX_CONFIG_BYTES + 1)
    except ValueError:
        raise ConfigError(f"{str(path)!r} is not a path") from None
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Make it with `{make_with}`") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        return msgspec.convert(tomllib.loads(text.decode()), kind)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None


def to_toml(config: Struct) -> str:
    """
    A configuration as TOML text: sections, sub-sections, scalars, and lists of tables at the top level.

    Values of `None` are left out, and so is an empty list at the top level: TOML could not
    extend it to a list of tables.
    """
    lines: list[str] = []
    tables: list[str] = []

    def section(path: tuple[str, ...], values: dict[str, Any]) -> None:
        scalars = {k: v for k, v in values.items() if v is not None and not isinstance(v, dict)}
        if not path:
            for name in [name for name, value in scalars.items() if isinstance(value, (list, tuple))]:
                for entry in scalars.pop(name):
                    tables.append(f"[[{_key(name)}]]")
                    tables.extend(f"{_key(k)} = {_value(v)}" for k, v in entry.items() if v is not None)
                    tables.append("")
        if scalars:
            if path:
                lines.append(f"[{'.'.join(_key(part) for part in path)}]")
            lines.extend(f"{_key(name)} = {_value(value)}" for name, value in scalars.items())
            lines.append("")
        for name, value in values.items():
            if isinstance(value, dict):
                section((*path, name), value)

    section((), msgspec.to_builtins(config))
    return "\n".join(lines + tables)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's syntax is valid TOML, except that TOML also escapes U+007F.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def check_listen(listen: str) -> None:
    """Check the port of a ``HOST:PORT``; raises `ValueError`, which msgspec's converters report."""
    if not 1 <= int(listen.rpartition(":")[2]) <= 65535:
        raise ValueError(f"{listen} must end in a port from 1 to 65535")


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine, and can be nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """
    Create the folder *path* atomically: yields a temporary folder, which is renamed at the end.

    Raises:
        ConfigError: *path* exists and is not empty, or it cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} exists already and is not empty")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except KeyFileError as error:
        raise ConfigError(str(error)) from None
    except UnicodeEncodeError:
        raise ConfigError(f"{str(path)!r}: a name or a setting is not Unicode text") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}") from None

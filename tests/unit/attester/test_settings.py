"""Configuration: what was written is read back, and what is wrong is named in a sentence."""

from __future__ import annotations

import tomllib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.config import AttesterConfig, Home
from attester.errors import ConfigError, KeyFileError
from attester.settings import check_listen, new_folder, read_toml, to_toml

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
COMMAND = "touchstone attester init"
GOOD = """
[verifier]
url = "https://verifier.example"
[models."org/name"]
dir = "/models/name"
[serve]
url = "https://node.example:8000"
"""


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    number: int
    share: float
    flag: bool
    words: tuple[str, ...] = ()
    missing: str | None = None


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    section: Inner
    named: dict[str, Inner]


INNER = st.builds(
    Inner,
    text=TEXT,
    number=st.integers(-(1 << 62), 1 << 62),
    share=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    words=st.lists(TEXT, max_size=3).map(tuple),
    missing=st.one_of(st.none(), TEXT),
)


def read(tmp_path, data: str | bytes):
    path = tmp_path / "attester.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_toml(path, AttesterConfig, COMMAND)


@given(st.builds(Outer, section=INNER, named=st.dictionaries(TEXT, INNER, min_size=1, max_size=2)))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read_back(config):
    """Any text in values and in names: control characters, quotes, dots, all of Unicode."""
    assert msgspec.convert(tomllib.loads(to_toml(config)), Outer) == config


@pytest.mark.parametrize("code", [*range(0x20), 0x22, 0x27, 0x5C, 0x7F, 0x80, 0x9F, 0x2028, 0xFEFF, 0x10FFFF])
def test_every_awkward_character_is_read_back(tmp_path, code):
    """In a value and in a name, through a file."""
    inner = Inner(f"a{chr(code)}b", 1, 0.5, flag=True)
    config = Outer(inner, {f"n{chr(code)}": inner})
    path = tmp_path / "x.toml"
    path.write_bytes(to_toml(config).encode())
    assert read_toml(path, Outer, COMMAND) == config


def test_a_value_opens_no_section():
    """A setting's text cannot add settings of its own."""
    evil = 'x"\n[serve]\nurl = "https://evil'
    config = Outer(Inner(evil, 1, 0.5, flag=False), {evil: Inner("", 0, 0.0, flag=False)})
    assert tomllib.loads(to_toml(config)).keys() == {"section", "named"}


def test_a_good_configuration_is_read(tmp_path):
    """What the negative cases below start from is itself accepted."""
    assert read(tmp_path, GOOD).models["org/name"].dir == "/models/name"


def test_what_is_left_out_has_its_default(tmp_path):
    """Sections too."""
    config = read(tmp_path, GOOD)
    assert (config.engine.adapter, config.capabilities.hardware_class) == ("loopback", "cpu")


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    """The operator is told what to type."""
    with pytest.raises(ConfigError, match=f"does not exist. Make it with `{COMMAND}`"):
        read_toml(tmp_path / "attester.toml", AttesterConfig, COMMAND)


def test_a_folder_in_its_place_is_said(tmp_path):
    """In a sentence with the path."""
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be read"):
        read_toml(tmp_path, AttesterConfig, COMMAND)


def test_a_file_too_large_is_refused(tmp_path):
    """Valid TOML or not, one byte more than allowed."""
    with pytest.raises(ConfigError, match="is larger than 262144 bytes"):
        read(tmp_path, GOOD + "#" * (256 * 1024 + 1 - len(GOOD)))


def test_the_largest_file_is_read(tmp_path):
    """The bound itself is allowed."""
    assert read(tmp_path, GOOD + "#" * (256 * 1024 - len(GOOD))) == read(tmp_path, GOOD)


UNREADABLE = {
    "not UTF-8": b'a = "\xff"',
    "UTF-16": GOOD.encode("utf-16"),
    "NUL": b"\x00",
    "not TOML": b"verifier: x",
    "JSON": b"{}",
    "cut": b'[verifier]\nurl = "https',
    "section twice": (GOOD + GOOD).encode(),
    "setting twice": b'[verifier]\nurl = "https://a"\nurl = "https://a"',
    "surrogate": b'[verifier]\nurl = "\\ud800"',
    "escape beyond Unicode": b'[verifier]\nurl = "\\UFFFFFFFF"',
    "empty": b"",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, name):
    """With the path of the file, never with a stack trace."""
    with pytest.raises(ConfigError, match=r"attester\.toml: "):
        read(tmp_path, UNREADABLE[name])


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "1" * 5000], ids=["nested", "5,000 digits"])
def test_toml_that_its_parser_gives_up_on_is_refused(tmp_path, text):
    """What overwhelms the parser is a ConfigError too."""
    with pytest.raises(ConfigError):
        read(tmp_path, text)


UNKNOWN = {
    "section": ("[metrics]\nport = 1", "metrics"),
    "setting at the top": ("surprise = 1", "surprise"),
    "setting of a section": ('[engine]\nadaptor = "files"', "adaptor"),
    "setting of a model": ('[models.b]\ndir = "x"\nrevision = "main"', "revision"),
    "setting in capitals": ('[engine]\nURL = "http://a"', "URL"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_setting_is_refused_by_name(tmp_path, name):
    """A slip of the keyboard is not a default."""
    text, word = UNKNOWN[name]
    with pytest.raises(ConfigError, match=f"`{word}`"):
        read(tmp_path, text + "\n" + GOOD if name == "setting at the top" else GOOD + text)


BAD = {
    "no verifier": GOOD.replace('[verifier]\nurl = "https://verifier.example"\n', ""),
    "no serve": GOOD.replace('[serve]\nurl = "https://node.example:8000"\n', ""),
    "no models": GOOD.replace('[models."org/name"]\ndir = "/models/name"\n', ""),
    "models empty": GOOD.replace('[models."org/name"]\ndir = "/models/name"\n', "[models]\n"),
    "a model without its folder": GOOD.replace('dir = "/models/name"\n', ""),
    "33 models": GOOD + "".join(f'[models.m{i}]\ndir = "x"\n' for i in range(33)),
    "a model's name with ..": GOOD.replace("org/name", "../name"),
    "a model's name with a space": GOOD.replace("org/name", "org name"),
    "a model's name empty": GOOD.replace("org/name", ""),
    "a model's name long": GOOD.replace("org/name", "a" * 129),
    "a model's name with a newline": GOOD.replace("org/name", "name\\n"),
    "verifier with a path": GOOD.replace("verifier.example", "verifier.example/api"),
    "verifier with a slash": GOOD.replace("verifier.example", "verifier.example/"),
    "verifier with a user": GOOD.replace("verifier.example", "a:b@verifier.example"),
    "verifier with a query": GOOD.replace("verifier.example", "verifier.example?x"),
    "verifier with a newline": GOOD.replace("verifier.example", "verifier.example\\n"),
    "verifier without a scheme": GOOD.replace("https://verifier.example", "verifier.example"),
    "verifier by file": GOOD.replace("https://verifier.example", "file://verifier.example"),
    "served over http": GOOD.replace("https://node.example", "http://node.example"),
    "served with a path": GOOD.replace(":8000", ":8000/v1"),
    "served with a newline": GOOD.replace(":8000", ":8000\\n"),
    "text for a number": GOOD + '[capabilities]\nmemory_bytes = "64 GB"\n',
    "true for a number": GOOD + "[capabilities]\nmemory_bytes = true\n",
    "a float for a number": GOOD + "[capabilities]\nmemory_bytes = 1.5\n",
    "a class of 129": GOOD + f'[capabilities]\nhardware_class = "{"x" * 129}"\n',
    "a region of 129": GOOD + f'[capabilities]\nregion = "{"x" * 129}"\n',
}


@pytest.mark.parametrize("name", BAD)
def test_a_setting_out_of_range_is_refused(tmp_path, name):
    """When it is read, with the path of the file."""
    with pytest.raises(ConfigError, match=r"attester\.toml: "):
        read(tmp_path, BAD[name])


@pytest.mark.parametrize(
    "text",
    [
        "memory_bytes = -1",
        'hardware_class = ""',
        'hardware_class = "cpu\\n"',
        'hardware_class = "großrechner"',
        'quantisation = ""',
        'region = "Zürich"',
        "memory_bytes = 9223372036854775807",
    ],
)
def test_a_capability_that_evidence_cannot_carry_is_refused(tmp_path, text):
    """The operator hears of it here, not from a verifier that contraindicates the node."""
    with pytest.raises(ConfigError):
        read(tmp_path, GOOD + "[capabilities]\n" + text)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:65535", "host:8440"])
def test_a_port_that_can_be(listen):
    """From 1 to 65535."""
    assert check_listen(listen) is None


@pytest.mark.parametrize("listen", ["h:0", "h:65536", "h:99999", "h:-1", "h:", "h", "", "h:80x"])
def test_a_port_that_cannot_be(listen):
    """Refused as converters expect it."""
    with pytest.raises(ValueError):
        check_listen(listen)


@pytest.fixture
def config(tmp_path):
    return read(tmp_path, GOOD)


def test_a_home_is_read_back(tmp_path, config):
    """Configuration, keys and secret."""
    home = Home(tmp_path / "home")
    home.create(config)
    assert home.config() == config


def test_a_home_is_its_owners_alone(tmp_path, config):
    """The folder and each secret in it."""
    home = Home(tmp_path / "home")
    home.create(config)
    modes = {name: (home.path / name).stat().st_mode & 0o777 for name in (".", "node.key", "engine.secret")}
    assert modes == {".": 0o700, "node.key": 0o600, "engine.secret": 0o600}


def test_a_home_is_never_overwritten(tmp_path, config):
    """The second is refused, and the first key is what it was."""
    home = Home(tmp_path / "home")
    home.create(config)
    before = home.node_key().public
    with pytest.raises(ConfigError, match="exists already"):
        home.create(config)
    assert home.node_key().public == before


def test_a_folder_that_is_not_filled_is_not_there(tmp_path):
    """All of it or nothing, whatever goes wrong."""

    def fill() -> None:
        with new_folder(tmp_path / "new") as folder:
            (folder / "half").write_text("x")
            raise KeyFileError("disk on fire")

    with pytest.raises(ConfigError, match="disk on fire"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    """What is there stays there."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"), new_folder(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]

"""Which files are a model's, and that what is hashed is what was listed."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.evidence import File
from attester.weights import folder as folder_module
from attester.weights.folder import Folder, ModelFile, open_folder
from attester.weights.hashing import hash_file
from attester.weights.manifest import measure

HEADER = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"abcd"


def put(path, data: bytes = b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(root) -> list[str]:
    return [file.name for file in open_folder(root).files]


@pytest.fixture
def cache(tmp_path):
    """A Hugging Face cache: a snapshot whose files are links into blobs."""
    model = tmp_path / "hub" / "models--org--name"
    snapshot = model / "snapshots" / "0123abcd"
    put(model / "refs" / "main", b"0123abcd")
    put(model / "blobs" / "aaaa", WEIGHTS)
    put(model / "blobs" / "bbbb", b"config")
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    (snapshot / "sub" / "config.json").symlink_to("../../../blobs/bbbb")
    return snapshot


def test_a_folder_is_measured(tmp_path):
    """Name, size and SHA-256 of every file, below folders too."""
    put(tmp_path / "a.bin", b"one")
    put(tmp_path / "deep" / "er" / "b.bin", b"")
    assert measure(open_folder(tmp_path)).to_claim().files == (
        File(name="a.bin", size=3, sha256=hashlib.sha256(b"one").digest()),
        File(name="deep/er/b.bin", size=0, sha256=hashlib.sha256(b"").digest()),
    )


def test_the_total_is_of_all_files(tmp_path):
    """Bytes as listed."""
    put(tmp_path / "a", b"123")
    put(tmp_path / "b" / "c", b"45")
    assert open_folder(tmp_path).total == 5


def test_a_cache_is_measured_through_its_links(cache):
    """A snapshot has the names of its links and the bytes of its blobs."""
    found = {file.name: file.sha256 for file in measure(open_folder(cache)).to_claim().files}
    assert found == {
        "model.safetensors": hashlib.sha256(WEIGHTS).digest(),
        "sub/config.json": hashlib.sha256(b"config").digest(),
    }


def test_the_size_of_a_link_is_that_of_its_file(cache):
    """Not the length of the path that the link holds."""
    assert [file.size for file in open_folder(cache).files] == [len(WEIGHTS), 6]


def test_a_cache_is_found_behind_a_link(cache, tmp_path):
    """A link to the snapshot names the same model."""
    (tmp_path / "current").symlink_to(cache)
    assert names(tmp_path / "current") == ["model.safetensors", "sub/config.json"]


def test_a_cache_and_its_copy_have_one_manifest(cache, tmp_path):
    """How a model lies on the disk does not show in its manifest."""
    put(tmp_path / "copy" / "model.safetensors", WEIGHTS)
    put(tmp_path / "copy" / "sub" / "config.json", b"config")
    claim = measure(open_folder(cache)).to_claim()
    assert claim == measure(open_folder(tmp_path / "copy")).to_claim()
    assert claim.dtypes == {"U8": 4}


def test_a_link_out_of_the_cache_is_refused(cache):
    """Another model's blobs are another model's."""
    put(cache.parents[2] / "models--org--other" / "blobs" / "cccc")
    (cache / "extra").symlink_to("../../../models--org--other/blobs/cccc")
    with pytest.raises(WeightsError, match="extra is a link that leads out"):
        open_folder(cache)


def test_a_cache_whose_name_only_begins_alike_is_another(cache):
    """`models--org--name2` is not inside `models--org--name`."""
    put(cache.parents[2] / "models--org--name2" / "cccc")
    (cache / "extra").symlink_to("../../../models--org--name2/cccc")
    with pytest.raises(WeightsError, match="extra is a link that leads out"):
        open_folder(cache)


@pytest.mark.parametrize("path", ["models--o--n/other/rev", "plain/snapshots/rev", "models--o--n/rev"])
def test_a_folder_that_is_no_snapshot_has_only_itself(tmp_path, path):
    """Links may leave a folder in a cache's own layout only."""
    root = tmp_path / path
    root.mkdir(parents=True)
    put(root.parent / "blob")
    (root / "model").symlink_to("../blob")
    with pytest.raises(WeightsError, match="model is a link that leads out"):
        open_folder(root)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    """Two names of one file are two files of the manifest."""
    put(tmp_path / "real", b"abc")
    (tmp_path / "alias").symlink_to("real")
    assert [(file.name, file.size) for file in open_folder(tmp_path).files] == [("alias", 3), ("real", 3)]


def test_a_link_out_by_way_of_the_inside_is_refused(tmp_path):
    """Where a chain of links ends is what counts."""
    put(tmp_path / "secret")
    put(tmp_path / "model" / "a")
    (tmp_path / "model" / "hop").symlink_to("../secret")
    (tmp_path / "model" / "first").symlink_to("hop")
    with pytest.raises(WeightsError, match="leads out"):
        open_folder(tmp_path / "model")


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "/dev/zero", "/nowhere"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, target):
    """Nothing outside is read, whether it exists or not."""
    put(tmp_path / "secret")
    put(tmp_path / "model" / "a")
    (tmp_path / "model" / "link").symlink_to(target)
    with pytest.raises(WeightsError, match="link is a link that leads out of the model's folder"):
        open_folder(tmp_path / "model")


def test_a_link_to_a_folder_whose_name_begins_alike_is_refused(tmp_path):
    """`model-private` is not inside `model`."""
    put(tmp_path / "model-private" / "key")
    put(tmp_path / "model" / "a")
    (tmp_path / "model" / "link").symlink_to("../model-private/key")
    with pytest.raises(WeightsError, match="leads out"):
        open_folder(tmp_path / "model")


@pytest.mark.parametrize("target", ["sub", ".", "sub/.."])
def test_a_link_to_a_folder_is_refused(tmp_path, target):
    """Files are listed once, and no listing goes round for ever."""
    put(tmp_path / "sub" / "a")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(WeightsError, match="link is a link to a folder"):
        open_folder(tmp_path)


@pytest.mark.parametrize("target", ["loop", "other"])
def test_links_in_a_circle_are_refused(tmp_path, target):
    """In a sentence."""
    put(tmp_path / "a")
    (tmp_path / "other").symlink_to("loop")
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(WeightsError):
        open_folder(tmp_path)


def test_a_root_that_is_a_circle_is_refused(tmp_path):
    """In a sentence."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WeightsError):
        open_folder(tmp_path / "loop")


def test_a_link_to_nothing_is_refused(tmp_path):
    """A missing file is said, not left out."""
    put(tmp_path / "a")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(WeightsError, match="link does not exist"):
        open_folder(tmp_path)


def test_a_pipe_is_refused(tmp_path):
    """By name, and without waiting for who might write to it."""
    put(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="pipe is neither a file nor a folder"):
        open_folder(tmp_path)


def test_a_link_to_a_pipe_is_refused(tmp_path):
    """What stands behind the link counts."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(WeightsError, match="is neither a file nor a folder"):
        open_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_said(tmp_path):
    """With its name."""
    put(tmp_path / "locked").chmod(0)
    with pytest.raises(WeightsError, match="locked cannot be read"):
        measure(open_folder(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed_is_said(tmp_path):
    """It is not taken for an empty one."""
    put(tmp_path / "a")
    (tmp_path / "sub").mkdir(mode=0)
    with pytest.raises(WeightsError, match="cannot be read"):
        open_folder(tmp_path)


def test_a_missing_folder_is_said(tmp_path):
    """With its path."""
    with pytest.raises(WeightsError, match=f"{tmp_path / 'gone'} does not exist"):
        open_folder(tmp_path / "gone")


def test_a_file_is_no_folder(tmp_path):
    """With its path."""
    with pytest.raises(WeightsError, match="is not a folder"):
        open_folder(put(tmp_path / "a"))


def test_an_empty_folder_is_refused(tmp_path):
    """Folders alone are no model."""
    (tmp_path / "sub").mkdir()
    with pytest.raises(WeightsError, match="has no files"):
        open_folder(tmp_path)


def test_a_folder_of_ignored_files_is_empty(tmp_path):
    """Version control alone is no model."""
    put(tmp_path / ".gitattributes")
    with pytest.raises(WeightsError, match="has no files"):
        open_folder(tmp_path)


def test_as_many_files_as_allowed(tmp_path, monkeypatch):
    """The bound itself is allowed."""
    monkeypatch.setattr(folder_module, "MAX_FILES", 3)
    for name in ("a", "b", "sub/c"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a", "b", "sub/c"]


def test_one_file_too_many(tmp_path, monkeypatch):
    """Counted over all folders."""
    monkeypatch.setattr(folder_module, "MAX_FILES", 3)
    for name in ("a", "b", "sub/c", "sub/d"):
        put(tmp_path / name)
    with pytest.raises(WeightsError, match="more than 3 files"):
        open_folder(tmp_path)


def test_ignored_files_do_not_count(tmp_path, monkeypatch):
    """The history of a repository does not use up the bound."""
    monkeypatch.setattr(folder_module, "MAX_FILES", 1)
    put(tmp_path / "a")
    for number in range(5):
        put(tmp_path / ".git" / str(number))
    assert names(tmp_path) == ["a"]


IGNORED = [".git", ".gitattributes", ".github", ".gitignore", ".cache"]


@pytest.mark.parametrize("name", IGNORED)
def test_version_controls_own_files_are_ignored_at_the_top(tmp_path, name):
    """As a file, as OpenSSF Model Signing does."""
    put(tmp_path / "a")
    put(tmp_path / name)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("name", IGNORED)
def test_version_controls_own_folders_are_ignored_at_the_top(tmp_path, name):
    """And as a folder with whatever is in it."""
    put(tmp_path / "a")
    put(tmp_path / name / "inside")
    os.mkfifo(tmp_path / name / "pipe")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("name", IGNORED)
def test_nothing_is_ignored_below_the_top(tmp_path, name):
    """No folder deeper down hides files from the manifest."""
    put(tmp_path / "sub" / name)
    assert names(tmp_path) == [f"sub/{name}"]


@pytest.mark.parametrize("name", [".gitmodules", ".GIT", ".git2", ".hidden", "~", ".cache.json", "x.py"])
def test_nothing_else_is_ignored(tmp_path, name):
    """Hidden files and code are files of the model."""
    put(tmp_path / name)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("parent", [b"", b"d\xff/"], ids=["file", "folder"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path, parent):
    """Named in a way that can be printed."""
    path = os.fsencode(tmp_path) + b"/" + parent + b"f\xff"
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    with open(path, "wb"):
        pass
    with pytest.raises(WeightsError, match="the name is not UTF-8") as refusal:
        open_folder(tmp_path)
    assert str(refusal.value).isprintable()


def test_the_longest_name(tmp_path):
    """A name has as many bytes as the manifest's claim takes."""
    path = "/".join(["d" * 255] * 4)
    put(tmp_path / path)
    assert names(tmp_path) == [path]


def test_a_name_too_long_is_refused(tmp_path):
    """Here, where the operator sees it, not by the verifier later."""
    put(tmp_path.joinpath(*["d" * 200] * 5, "f" * 40))
    with pytest.raises(WeightsError, match="the name has more than 1024 bytes"):
        open_folder(tmp_path)


def test_files_are_ordered_by_the_bytes_of_their_names(tmp_path):
    """Over folders, by UTF-8: not by case, folder, length or UTF-16."""
    given_names = [
        "B",
        "a",
        "a-b",
        "a.b",
        "a/b",
        "a0",
        "aa",
        "é",
        "z",
        "\uffee",
        "\U0001f999",
        "Z/z",
        "10",
        "9",
    ]
    for name in given_names:
        if name != "a":
            put(tmp_path / name)
    expected = sorted((name for name in given_names if name != "a"), key=lambda name: name.encode())
    assert names(tmp_path) == expected


@given(
    st.lists(
        st.text(
            st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=12
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=50)
def test_any_names_are_listed_in_order(tmp_path_factory, found):
    """Whatever Unicode the names have, none is lost, none changed, and the order is the bytes'."""
    root = tmp_path_factory.mktemp("any")
    expected = sorted({n.encode() for n in found} - {b".", b"..", *map(str.encode, IGNORED)})
    for name in expected:
        put(root / name.decode())
    put(root / "always")
    assert [name.encode() for name in names(root)] == sorted({*expected, b"always"})


def test_names_are_not_normalised(tmp_path):
    """Two spellings of one letter are two files."""
    put(tmp_path / "e\u0301")
    put(tmp_path / "\u00e9")
    assert names(tmp_path) == ["e\u0301", "\u00e9"]


def only(root) -> ModelFile:
    (file,) = open_folder(root).files
    return file


@pytest.fixture
def small_slices(monkeypatch):
    """A few thousand bytes are several slices."""
    monkeypatch.setattr(folder_module, "SLICE_BYTES", 1 << 16)


def test_a_file_is_read_in_pieces(tmp_path, small_slices):
    """Progress adds up to the file, and the digest is that of the whole."""
    data = bytes(range(256)) * 3000
    put(tmp_path / "a", data)
    done = []
    assert hash_file(only(tmp_path), progress=done.append) == {"sha256": hashlib.sha256(data).digest()}
    assert (sum(done), len(done) > 1) == (len(data), True)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, small_slices):
    """Bytes appended behind the reader's back."""
    path = put(tmp_path / "a", bytes(300_000))
    with open(path, "ab", buffering=0) as stream:

        def grow(_: int) -> None:
            if path.stat().st_size == 300_000:
                stream.write(b"more")

        with pytest.raises(WeightsError, match="a changed while it was read"):
            hash_file(only(tmp_path), progress=grow)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, small_slices):
    """Bytes cut off before the reader comes to them."""
    path = put(tmp_path / "a", bytes(600_000))
    with (
        open(path, "r+b") as stream,
        pytest.raises(WeightsError, match="a changed while it was read"),
    ):
        hash_file(only(tmp_path), progress=lambda _: stream.truncate(300_000))


def test_a_file_that_is_rewritten_while_it_is_read_is_refused(tmp_path, small_slices):
    """Other bytes of the same number, where the reader has been already."""
    path = put(tmp_path / "a", bytes(600_000))
    file = only(tmp_path)
    with open(path, "r+b", buffering=0) as stream:

        def rewrite(_: int) -> None:
            stream.seek(0)
            stream.write(b"other")
            os.utime(path, ns=(1, 1))

        with pytest.raises(WeightsError, match="a changed while it was read"):
            hash_file(file, progress=rewrite)


@pytest.mark.parametrize("data", [b"", b"12", b"1234"])
def test_a_file_of_another_size_than_listed_is_refused(tmp_path, data):
    """Between the listing and the reading too."""
    path = put(tmp_path / "a", b"123")
    file = only(tmp_path)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="a changed since it was listed"):
        hash_file(file)


def test_a_file_that_is_gone_is_said(tmp_path):
    """With its name, not its path."""
    path = put(tmp_path / "a")
    folder = open_folder(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"^a cannot be read: No such file"):
        measure(folder)


def test_one_bad_file_fails_the_measurement(tmp_path):
    """A manifest has every file or does not come about."""
    for number in range(20):
        put(tmp_path / f"{number:02}")
    folder = open_folder(tmp_path)
    (tmp_path / "11").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="11 changed"):
        measure(folder)


def test_digests_stay_with_their_files(tmp_path):
    """Files are hashed side by side, and each gets its own digest."""
    for number in range(40):
        put(tmp_path / f"{number:02}", bytes([number]) * (number * 1000))
    digests = [file.sha256 for file in measure(open_folder(tmp_path)).to_claim().files]
    assert digests == [hashlib.sha256(bytes([n]) * (n * 1000)).digest() for n in range(40)]


def test_progress_counts_every_byte_over_threads(tmp_path):
    """The bar reaches its end, whichever thread reads."""
    for number in range(10):
        put(tmp_path / str(number), bytes(1000 * number))
    folder = open_folder(tmp_path)
    lock, done = threading.Lock(), [0]

    def advance(count: int) -> None:
        with lock:
            done[0] += count

    measure(folder, progress=advance)
    assert done == [folder.total]


def test_a_folder_of_no_bytes_has_a_total_of_none():
    """Empty files are files."""
    assert Folder(None, (ModelFile("a", None, 0),)).total == 0

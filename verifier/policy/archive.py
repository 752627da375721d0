"""Policy bundles as zip archives, the form in which they travel."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Final

from verifier.errors import BundleError
from verifier.policy.bundle import (
    MAX_FILE,
    MAX_TOTAL,
    SIGNATURE,
    Bundle,
    of_files,
)
from verifier.policy.content import MAX_FILES, check_name, is_name

MAX_ARCHIVE: Final = 16 << 20
_ENTRY: Final = b"PK\x01\x02"
"""With these bytes each entry of a zip archive's list begins."""
_GZIP: Final = b"\x1f\x8b"
_SPARE: Final = 100
"""Entries for empty folders, and places where a file's own bytes look like one."""
_REGULAR_FILE_MODES: Final = (0, 0o10)
"""File types in an entry's Unix mode; 0 if the writer set none."""


def write_archive(bundle: Bundle, envelope: bytes | None) -> bytes:
    """
    Write a bundle as a zip archive, with its signature if there is one; equal bundles give equal bytes.

    Raises:
        BundleError: the archive would be larger than `MAX_ARCHIVE`.
    """
    files = dict(bundle.files) if envelope is None else {**bundle.files, SIGNATURE: envelope}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    data = out.getvalue()
    _check_size(data)
    return data


def read_archive(data: bytes) -> tuple[Bundle, bytes | None]:
    """
    Read an archive: the bundle, and the signature in it.

    Nothing is written to disk.  Bounds apply to the bytes that come out, not to the sizes that
    the archive claims.

    Raises:
        BundleError: the archive is too large or not a zip archive; it has a name that leads out of
            it, a link, a file twice, or an encrypted or too large file; or it is not a bundle.
    """
    _check_size(data)
    if data.count(_ENTRY) > 2 * MAX_FILES + _SPARE:
        # Before the library reads the list: it makes an object of each entry, and 16 MiB have room for 300,000.
        raise BundleError(f"the archive lists more files than a bundle may have, {MAX_FILES}")
    files: dict[str, bytes] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if _is_empty_folder(entry):
                    continue
                check_name(entry.filename, len(files) - (entry.filename == SIGNATURE or SIGNATURE in files))
                if entry.filename in files:
                    raise BundleError(f"{entry.filename}: the archive has this file twice")
                _check_entry(entry)
                bytes_left = min(MAX_FILE, MAX_TOTAL - total)
                with archive.open(entry) as stream:
                    content = stream.read(bytes_left + 1)
                if len(content) > bytes_left:
                    raise BundleError(f"{entry.filename}: more than {bytes_left} bytes when unpacked")
                total += len(content)
                files[entry.filename] = content
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        ValueError,
        OSError,
        OverflowError,
        RuntimeError,
    ) as error:
        hint = (
            ". This is gzip, as opa build writes it: use touchstone policy pack" if data[:2] == _GZIP else ""
        )
        raise BundleError(f"not a zip archive that can be read: {str(error)[:200]}{hint}") from None
    return of_files(files), files.get(SIGNATURE)


def _check_size(data: bytes) -> None:
    if len(data) > MAX_ARCHIVE:
        raise BundleError(f"the archive has {len(data)} bytes, and it may have at most {MAX_ARCHIVE}")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1 or (entry.external_attr >> 28) not in _REGULAR_FILE_MODES:
        raise BundleError(f"{entry.filename}: encrypted, or not a regular file")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods do not bound how many bytes one step of decompression gives.
        raise BundleError(f"{entry.filename}: compressed by a method that no bundle may use")


def _is_empty_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder, which other tools list.  `ZipInfo.is_dir` fails if the name is empty."""
    name = entry.filename
    return name.endswith("/") and not entry.file_size and is_name(name[:-1])

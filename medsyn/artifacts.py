"""Where files lie, how they are written, and what their bytes hash to. Standard library only.

A file or folder appears under its name only when it is complete: it is written to a sibling with a temporary
name first and then renamed. A full disk leaves the old state and an error, never half a file.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
_CHUNK_BYTES = 1 << 20


class ArtifactError(RuntimeError):
    """A stored file or folder is missing, incomplete or not what its manifest says."""


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def folder_files(folder: Path, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file below ``folder`` by its POSIX path, the folder's own manifest left out; ``digests`` has
    those that are known already."""
    known = digests or {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: known.get(name) or file_sha256(path) for name, path in names.items()}


def digest_of(value: Any) -> str:
    """sha256 of a JSON value in canonical form: the content address of whatever it describes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """One digest for a folder: of its files' names and contents, whatever their order or times."""
    return digest_of(folder_files(folder))


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling; when the block ends without an error it becomes ``target``.

    Replaces an existing file at once. After an error the temporary file is gone and ``target`` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(target: Path, content: bytes) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def json_bytes(value: Any) -> bytes:
    """A JSON value as the content of a file, equal for equal values."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(target: Path, value: Any) -> None:
    write_bytes(target, json_bytes(value))


@contextlib.contextmanager
def atomic_folder(target: Path, *, digests: Mapping[str, str] | None = None, **manifest: Any) -> Iterator[Path]:
    """Yield a temporary sibling folder; when the block ends without an error it becomes ``target``.

    The manifest (sha256 of every file, plus the JSON values given by keyword) is written last: a folder that
    has one is complete. An existing ``target`` is replaced only once the new folder is whole. ``digests`` may be
    filled within the block with the sha256 of files that were hashed while they were written, by POSIX path: those
    are not read again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield temporary
        write_json(temporary / MANIFEST_NAME, {**manifest, "files": folder_files(temporary, digests)})
        temporary.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
            target.replace(retired / target.name)
            try:
                temporary.replace(target)
            except BaseException:
                (retired / target.name).replace(target)
                retired.rmdir()
                raise
            shutil.rmtree(retired)
        else:
            temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder; raises ArtifactError where it is missing or unreadable."""
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}: it is not there or was never finished.") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}). Restore the folder from its source.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{path} lists no files. Restore the folder from its source.")
    return manifest


def verify_folder(folder: Path) -> dict[str, Any]:
    """Compare a folder with its manifest, file by file; return the manifest or raise ArtifactError."""
    manifest = read_manifest(folder)
    expected, found = manifest["files"], folder_files(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            state = "missing" if name not in found else "not listed" if name not in expected else "changed"
            raise ArtifactError(f"{folder / name} is {state}, by {MANIFEST_NAME}. Restore it from its source.")
    return manifest

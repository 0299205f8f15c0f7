"""Files and folders appear whole or not at all: full disk, error half-way, failed rename, changed content."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medsyn import artifacts
from medsyn.artifacts import ArtifactError, atomic_folder, atomic_path, read_manifest, verify_folder, write_bytes


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_written_file_is_whole_readable_and_alone(tmp_path):
    target = tmp_path / "new" / "value.json"
    artifacts.write_json(target, {"b": 1, "a": "ä"})
    assert target.read_text(encoding="utf-8") == '{\n  "a": "ä",\n  "b": 1\n}\n'
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert names(target.parent) == {"value.json"}


def test_an_error_half_way_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from medsyn.artifacts import atomic_folder, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
target = Path(sys.argv[1])
try:
    if sys.argv[2] == "file":
        write_bytes(target, bytes(200_000))
    else:
        with atomic_folder(target) as folder:
            (folder / "small.txt").write_text("small")
            (folder / "large.bin").write_bytes(bytes(200_000))
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("is_old", [True, False])
def test_a_write_that_the_system_cuts_off_leaves_nothing_half(tmp_path, what, is_old):
    """A real limit on file size, met in mid-write by a process of its own."""
    target = tmp_path / "target"
    if is_old and what == "file":
        write_bytes(target, b"old")
    elif is_old:
        with atomic_folder(target) as folder:
            (folder / "old.txt").write_text("old")
    command = [sys.executable, "-c", FULL_DISK, str(target), what]
    assert subprocess.run(command, check=False).returncode == errno.EFBIG
    assert names(tmp_path) == ({"target"} if is_old else set())
    if is_old and what == "file":
        assert target.read_bytes() == b"old"
    elif is_old:
        assert verify_folder(target)["files"].keys() == {"old.txt"}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_when_the_file_is_flushed(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    monkeypatch.setattr(artifacts.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


def test_a_disk_that_is_full_when_the_manifest_is_written(tmp_path, monkeypatch):
    target = tmp_path / "checkpoint-5"
    with atomic_folder(target, step=5) as folder:
        (folder / "weights").write_bytes(b"old")
    monkeypatch.setattr(artifacts, "write_json", no_space)
    with pytest.raises(OSError, match="No space left"), atomic_folder(target, step=6) as folder:
        (folder / "weights").write_bytes(b"new")
    assert verify_folder(target)["step"] == 5
    assert names(tmp_path) == {"checkpoint-5"}


def test_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "weights").write_bytes(b"old")
    rename = Path.replace

    def fail_for_new(self, destination):
        if self.suffix == ".tmp" and self.is_dir():
            no_space()
        return rename(self, destination)

    monkeypatch.setattr(Path, "replace", fail_for_new)
    with pytest.raises(OSError, match="No space left"), atomic_folder(target) as folder:
        (folder / "weights").write_bytes(b"new")
    assert (target / "weights").read_bytes() == b"old"
    verify_folder(target)
    assert names(tmp_path) == {"model"}


def test_a_folder_is_replaced_whole_and_its_manifest_tells_its_files(tmp_path):
    target = tmp_path / "model"
    for content in (b"one", b"two"):
        with atomic_folder(target, step=len(content), parents=["a"]) as folder:
            assert not (folder / "manifest.json").exists()
            (folder / "unet").mkdir()
            (folder / "unet" / "weights").write_bytes(content)
    manifest = verify_folder(target)
    assert manifest == {
        "step": 3,
        "parents": ["a"],
        "files": {"unet/weights": hashlib.sha256(b"two").hexdigest()},
    }
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert names(tmp_path) == {"model"}


def test_manifests_of_folders_inside_are_files_like_others(tmp_path):
    with atomic_folder(tmp_path / "outer") as outer, atomic_folder(outer / "inner") as inner:
        (inner / "weights").write_bytes(b"w")
    (tmp_path / "outer/inner/manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"inner/manifest.json is changed"):
        verify_folder(tmp_path / "outer")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a").write_text("other"), "a is changed"),
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "b").write_text("new"), "b is not listed"),
        (lambda f: (f / "manifest.json").unlink(), "never finished"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "lists no files"),
        (lambda f: (f / "manifest.json").write_text('{"step": 1}'), "lists no files"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says(tmp_path, damage, message):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("a")
    damage(tmp_path / "model")
    with pytest.raises(ArtifactError, match=message) as caught:
        verify_folder(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    for path in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(ArtifactError, match="it is not there or was never finished"):
            read_manifest(path)


def test_digests_depend_on_content_alone(tmp_path):
    assert artifacts.digest_of({"b": [1, 2], "a": "ä"}) == artifacts.digest_of({"a": "ä", "b": [1, 2]})
    assert artifacts.digest_of([1, 2]) != artifacts.digest_of([2, 1])
    text = json.dumps({"a": 1}, separators=(",", ":"))
    assert artifacts.digest_of({"a": 1}) == hashlib.sha256(text.encode()).hexdigest()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for file in ("x", "y") if name == "first" else ("y", "x"):
            (tmp_path / name / file).write_text(file)
    assert artifacts.folder_sha256(tmp_path / "first") == artifacts.folder_sha256(tmp_path / "second")
    (tmp_path / "second" / "x").rename(tmp_path / "second" / "z")
    assert artifacts.folder_sha256(tmp_path / "first") != artifacts.folder_sha256(tmp_path / "second")


def test_large_files_hash_as_the_library_does(tmp_path):
    content = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "a").write_bytes(content)
    assert artifacts.file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()

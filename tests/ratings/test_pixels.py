"""Pictures on their way to a reader: full depth or 8 bits for a whole study, kept once they are made."""

import io
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from generation.models import GeneratedImage
from medsyn import imaging
from medsyn.artifacts import file_sha256
from ratings.reader_images import reader_png
from ratings.services import add_images, create_study
from tests.factories import GeneratedImageFactory, PromptFactory
from tests.medsyn.imaging_files import RAMP, hounsfield, write_dicom

HU = np.arange(-1024, 3072).reshape(64, 64)


@pytest.fixture(autouse=True)
def var_dir(settings, tmp_path):
    settings.VAR_DIR = tmp_path / "var"
    return settings.VAR_DIR


def imported(artifact_root, name: str, write, *content, prompt="Chest CT: nodule", **elements) -> GeneratedImage:
    path = artifact_root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, *content, **elements)
    known = {"file": f"images/{name}", "sha256": file_sha256(path)}
    return GeneratedImageFactory(imported=True, prompt=PromptFactory(text=prompt, kind="chest_ct"), **known)


@pytest.fixture
def ct(artifact_root, db):
    return imported(
        artifact_root, "secret_a.dcm", hounsfield, HU, WindowCenter="40", WindowWidth="400", PatientName="SECRET^NAME"
    )


@pytest.fixture
def other_ct(artifact_root, db):
    return imported(
        artifact_root, "secret_b.dcm", hounsfield, HU[::-1], prompt="Chest CT: effusion", PatientID="SECRET-ID"
    )


def replies(study, reader, client) -> dict[str, object]:
    """By the file's name."""
    places = study.assignments.filter(reader=reader).select_related("image")
    found = {place.image.file: client.get(f"/api/assignments/{place.public_id}/image") for place in places}
    assert {reply.status_code for reply in found.values()} == {200}
    return found


def view_of(content: bytes) -> tuple[float, float, float, float, int, int]:
    """The chunk as it stands in the file: length, name, 34 bytes."""
    start = content.index(b"viEw")
    assert content[start - 4 : start] == (34).to_bytes(4, "big") and start < content.index(b"IDAT")
    return struct.unpack("<ddddBB", content[start + 4 : start + 38])


def test_a_study_of_deep_images_only_keeps_every_value(ct, other_ct, signed_in, bob):
    study = create_study(name="Deep", images=[ct, other_ct], readers=[(bob, 2)])
    found = replies(study, bob, signed_in(bob))
    content = found["images/secret_a.dcm"].content
    with Image.open(io.BytesIO(content)) as picture:
        samples = np.asarray(picture).astype(np.float64)
    slope, intercept, centre, width, is_hounsfield, is_linear = view_of(content)
    assert np.array_equal(samples * slope + intercept, HU)
    assert (centre, width, is_hounsfield, is_linear) == (40, 400, 1, 1)
    assert view_of(found["images/secret_b.dcm"].content)[2:] == (-600, 1500, 1, 0)  # chest CT without a window
    for reply in found.values():
        assert b"SECRET" not in reply.content and "secret" not in repr(reply.headers)


def test_beside_one_image_of_eight_bits_all_have_the_same_form(ct, other_ct, signed_in, bob):
    images = [ct, other_ct, GeneratedImageFactory(), GeneratedImageFactory(imported=True)]
    study = create_study(name="Mixed", images=images, readers=[(bob, 2)])
    found = replies(study, bob, signed_in(bob))
    for reply in found.values():
        with Image.open(io.BytesIO(reply.content)) as picture:
            picture.load()
            assert (picture.mode, picture.info) == ("RGB", {})
        assert b"viEw" not in reply.content
    assert len({repr({**reply.headers, "Content-Length": 0}) for reply in found.values()}) == 1
    with Image.open(io.BytesIO(found["images/secret_a.dcm"].content)) as picture:
        expected = np.clip((HU - 39.5) / 399 + 0.5, 0, 1)  # DICOM's LINEAR
        assert np.abs(np.asarray(picture)[..., 0] - expected * 255).max() <= 0.51


def test_headers_of_full_depth_are_the_same_for_every_image_and_as_elsewhere(ct, other_ct, signed_in, bob):
    deep = create_study(name="Deep", images=[ct, other_ct], readers=[(bob, 2)])
    flat = create_study(name="Flat", images=[GeneratedImageFactory()], readers=[(bob, 2)])
    every = [*replies(deep, bob, signed_in(bob)).values(), *replies(flat, bob, signed_in(bob)).values()]
    assert len({repr({**reply.headers, "Content-Length": 0}) for reply in every}) == 1
    assert every[0]["Cache-Control"] == "private, max-age=86400, immutable"
    assert every[0]["Content-Disposition"] == 'inline; filename="image.png"'


def test_the_depth_follows_the_images_of_the_study(ct, other_ct, bob):
    study = create_study(name="Growing", images=[ct], readers=[(bob, 2)])
    assert study.has_full_depth
    for images, is_deep in (
        ([other_ct], True),
        ([GeneratedImageFactory()], False),
        ([GeneratedImageFactory()], False),
    ):
        add_images(study=study, images=images)
        study.refresh_from_db()
        assert study.has_full_depth is is_deep
    empty = create_study(name="Empty", images=[])
    assert not empty.has_full_depth
    add_images(study=empty, images=[ct])
    empty.refresh_from_db()
    assert empty.has_full_depth


def test_the_depth_is_looked_up_once(ct, bob, signed_in, monkeypatch):
    study = create_study(name="Once", images=[ct], readers=[(bob, 2)])
    monkeypatch.setattr(imaging, "is_deep", None)
    (reply,) = replies(study, bob, signed_in(bob)).values()
    assert view_of(reply.content)


def test_a_colour_image_has_eight_bits_whatever_the_study(artifact_root, ct):
    colours = np.random.default_rng(5).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    image = imported(artifact_root, "c.dcm", write_dicom, colours, PhotometricInterpretation="RGB")
    with Image.open(io.BytesIO(reader_png(image, full_depth=True))) as picture:
        assert np.array_equal(np.asarray(picture), colours)


def test_a_copy_is_kept_and_used_until_the_file_changes(ct, var_dir, monkeypatch):
    first = {deep: reader_png(ct, full_depth=deep) for deep in (True, False)}
    assert len([path for path in (var_dir / "cache").rglob("*") if path.is_file()]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(imaging, "load", None)
        patch.setattr(imaging, "load_values", None)
        assert {deep: reader_png(ct, full_depth=deep) for deep in (True, False)} == first
    hounsfield(ct.path, HU[:, ::-1])
    assert reader_png(ct, full_depth=True) != first[True]
    shutil.rmtree(var_dir / "cache")
    assert reader_png(ct, full_depth=False) != first[False]


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_file_that_cannot_be_read_is_not_found_and_logged(ct, signed_in, bob, damage, caplog):
    study = create_study(name="Broken", images=[ct], readers=[(bob, 2)])
    if damage == "missing":
        ct.path.unlink()
    else:
        ct.path.write_bytes(ct.path.read_bytes()[:400])
    reply = signed_in(bob).get(f"/api/assignments/{study.assignments.get().public_id}/image")
    assert reply.status_code == 404 and reply.json() == {"detail": "This image cannot be read."}
    assert str(ct.public_id) in caplog.text and "secret_a" in caplog.text


def test_sixteen_bit_png_counts_as_deep(artifact_root, bob):
    image = imported(artifact_root, "a.png", lambda path: Image.fromarray(RAMP).save(path))
    study = create_study(name="PNG", images=[image], readers=[(bob, 2)])
    assert study.has_full_depth
    content = reader_png(image, full_depth=True)
    assert view_of(content)[2:] == (50, 100, 0, 0)
    with Image.open(io.BytesIO(content)) as picture:
        assert len(np.unique(np.asarray(picture))) == RAMP.size

"""Studies in which every telling column, file and name holds something to look for; a reader must not find it."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from django.conf import settings
from PIL import Image, PngImagePlugin

from generation.models import GeneratedImage, GenerationJob, Release
from medsyn.artifacts import file_sha256
from ratings.models import Assignment, GoldGrade, Rating, Study
from ratings.services import (
    create_study,
    enrol_reader,
    freeze_export,
    revise_protocol,
    set_gold,
    submit_rating,
)
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory, UserFactory, png_bytes
from tests.generation.small_releases import make_release
from tests.medsyn.imaging_files import write_dicom
from tests.training.runs import make_run

SEED, ORDER_SEED = 77_345_678, 8_642_097_531
SELECTOR_SCORE, POLICY_SCORE = 0.85123, 0.92347
# Planted, and what finding it would mean.
SECRETS = {
    "secret-model": "the model's name",
    "secret-pretrained": "the base model",
    "secretrelease": "the release",
    "abad1dea": "the sha256 of the weights",
    "secretfile": "a file's name",
    "secretfolder": "a folder",
    str(SEED)[:-2]: "a seed",
    str(ORDER_SEED): "the seed of the orders",
    str(SELECTOR_SCORE): "the selector's score",
    str(POLICY_SCORE): "the policy's score",
    "fellow_reader": "another reader's name",
    "fellow-remark-4711": "another reader's comment",
    "other_owner": "the name of a study's owner",
    "Study of others": "a study of others",
    "prompt of others": "the prompt of an image of others",
    "pseudonym-0815": "a patient's pseudonym",
    "Secretpatient": "a patient's name",
    "PID-998877": "a patient's id",
    "Secretclinic": "an institution",
    "SecretCamera": "EXIF",
    "secret-jpeg-comment": "a JPEG comment",
    "secret profile": "a colour profile",
    "secret-nifti": "a NIfTI header",
    "secret-png-text": "a PNG text",
    "secret-rationale": "why a gold grade is what it is",
    "secret-run": "a training run",
}
TAUGHT = "taught-rationale"  # may be told: of the images of the training round
_PROMPT = "Chest CT: nodule number {}"


@dataclass(frozen=True)
class BlindWorld:
    reader: object
    mixed: Study  # one image of each origin and kind, in 8 bits
    deep: Study  # only images of more than 8 bits
    almost: Study  # the same, but for one that is in colour
    others: Study  # not the reader's
    places: dict[str, list[Assignment]]  # of the reader in the mixed study, by kind
    identifiers: dict[str, list]  # by converter, for the crawler
    image_keys: tuple[str, ...]  # public ids and sha256 of images


def build(reader) -> BlindWorld:
    fellow, owner = UserFactory(username="fellow_reader"), UserFactory(username="other_owner")
    release = make_release("secretrelease", active=True)
    job = GenerationJobFactory(seed=SEED, pretrained_model="/models/secret-pretrained", release=release)
    images = [_generated(job, release, number) for number in range(12)]
    _reals()
    for number in range(6):
        image = _generated(job, release, 100 + number)
        set_gold(image=image, grade=number % 3 + 1, set_by=owner, rationale="secret-rationale")
    shares = {
        "gold_share": 0.15,
        "real_share": 0.2,
        "repeat_share": 0.2,
        "repeat_distance": 5,
        "calibration_share": 0.3,
    }
    mixed = create_study(
        name="Chest study", images=images, created_by=owner, order_seed=ORDER_SEED, protocol=shares, readers=[]
    )
    _training_round(mixed, job, release, owner)
    made = {"created_by": owner, "order_seed": ORDER_SEED}
    deep = create_study(name="Deep study", images=_deep("secretfile_e", 300, slices=5), **made)
    almost = create_study(name="Almost deep study", images=_deep("secretfile_f", 310, slices=3), **made)
    others = create_study(name="Study of others", images=_of_others(job), created_by=owner, order_seed=ORDER_SEED)
    enrol((mixed, deep, almost), reader, fellow)
    enrol((others,), fellow)
    GoldGrade.objects.filter(image__assignments__kind=Assignment.Kind.TRAINING).update(rationale=TAUGHT)
    _rated_by(fellow)
    export = freeze_export(study=mixed, created_by=owner)
    run = make_run(name="secret-run")
    places, identifiers = _by_kind(mixed, reader), _identifiers(release, job, export, run)
    return BlindWorld(reader, mixed, deep, almost, others, places, identifiers, _image_keys())


def enrol(studies, *readers) -> None:
    for study in studies:
        for reader in readers:
            enrol_reader(study=study, reader=reader, expert_level=2)


def _generated(job: GenerationJob, release: Release, number: int) -> GeneratedImage:
    """A PNG with texts beside its pixels."""
    path = settings.ARTIFACT_ROOT / f"secretfolder/secretfile_{number}_selector_{SELECTOR_SCORE}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", f"secret-png-text seed {SEED}")
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, pnginfo=texts, dpi=(300, 300), icc_profile=b"secret profile")
    return GeneratedImageFactory(
        job=job,
        position=number,
        release=release,
        prompt=_prompt(number),
        model_name="secret-model",
        weights_sha256="abad1dea" * 8,
        verdict=GeneratedImage.Verdict.ACCEPTED,
        selector_score=SELECTOR_SCORE,
        policy_score=POLICY_SCORE,
        **_file(path),
    )


def _prompt(number: int):
    return PromptFactory(text=_PROMPT.format(number), kind="chest_ct")


def _file(path: Path) -> dict[str, str]:
    return {"file": str(path.relative_to(settings.ARTIFACT_ROOT)), "sha256": file_sha256(path)}


def _imported(path: Path, number: int, *, is_real: bool = True) -> GeneratedImage:
    known = {"is_real": is_real, "patient": "pseudonym-0815", "model_name": "", "weights_sha256": ""}
    return GeneratedImageFactory(imported=True, prompt=_prompt(number), **known, **_file(path))


def _reals() -> list[GeneratedImage]:
    """Real images of every format, with what hospitals write beside the pixels."""
    folder = settings.ARTIFACT_ROOT / "secretfolder"
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    patient = {"PatientName": "Doe^Secretpatient", "PatientID": "PID-998877", "InstitutionName": "Secretclinic"}
    exif = Image.Exif()
    exif[0x0110] = "SecretCamera"
    photo = Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    photo.save(folder / "secretfile_a.jpg", exif=exif, icc_profile=b"secret profile", comment=b"secret-jpeg-comment")
    found = [
        folder / "secretfile_a.jpg",
        write_dicom(folder / "secretfile_b.dcm", values, WindowCenter="2000", WindowWidth="4000", **patient),
        _nifti(folder / "secretfile_c.nii.gz", values),
    ]
    grey = folder / "secretfile_d.png"
    Image.fromarray(values.astype(np.uint16)).save(grey)
    return [_imported(path, 200 + number) for number, path in enumerate([*found, grey])]


def _nifti(path: Path, values: np.ndarray, *, slices: int = 3) -> Path:
    """Three slices are read as the colours of a picture, more as a volume."""
    volume = nibabel.Nifti1Image(values.astype(np.int16)[:, :, None].repeat(slices, axis=2), np.eye(4))
    volume.header["descrip"] = b"secret-nifti"
    volume.header["db_name"] = b"secret-nifti"
    volume.to_filename(path)
    return path


def _deep(name: str, number: int, *, slices: int) -> list[GeneratedImage]:
    """A DICOM and a NIfTI file of 16 bits; their names begin with ``name``, their prompts end with ``number``."""
    folder = settings.ARTIFACT_ROOT / "secretfolder"
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    patient = {"PatientName": "Doe^Secretpatient", "PatientID": "PID-998877"}
    first = write_dicom(folder / f"{name}.dcm", values, WindowCenter="2000", WindowWidth="4000", **patient)
    second = _nifti(folder / f"{name}.nii.gz", values[::-1].copy(), slices=slices)
    return [_imported(first, number), _imported(second, number + 1, is_real=False)]


def _training_round(study: Study, job: GenerationJob, release: Release, owner) -> None:
    """Gold images of their own, whose grade and its reason the round tells."""
    for number in range(6):
        image = _generated(job, release, 400 + number)
        set_gold(image=image, grade=number % 3 + 1, set_by=owner, rationale=TAUGHT)
    revise_protocol(study=study, created_by=owner, num_training_images=3)


def _of_others(job: GenerationJob) -> list[GeneratedImage]:
    path = settings.ARTIFACT_ROOT / "secretfolder" / "secretfile_others.png"
    path.write_bytes(png_bytes(9))
    prompt = PromptFactory(text="Chest CT: prompt of others", kind="chest_ct")
    return [GeneratedImageFactory(job=job, position=900, prompt=prompt, **_file(path))]


def _rated_by(fellow) -> None:
    """All of the fellow's places, as comments and defects too."""
    for place in Assignment.objects.filter(reader=fellow).order_by("position"):
        said = {"value": 1, "comment": "fellow-remark-4711", "client_uuid": uuid.uuid4()}
        submit_rating(assignment=place, reader=fellow, **said)
    assert Rating.objects.filter(assignment__reader=fellow).count() > 20


def _by_kind(study: Study, reader) -> dict[str, list[Assignment]]:
    found: dict[str, list[Assignment]] = {}
    for place in study.assignments.filter(reader=reader).order_by("position").select_related("image"):
        found.setdefault(place.kind, []).append(place)
    assert found.keys() == set(Assignment.Kind.values), found.keys()
    return found


def _identifiers(release: Release, job: GenerationJob, export, run) -> dict[str, list]:
    """What an address could be filled with: studies, places of every kind and reader, images of every origin, keys,
    names."""
    places = Assignment.objects.order_by("study", "reader", "kind", "pk")
    one_of_each = {(place.study_id, place.reader_id, place.kind): place.public_id for place in places}
    images = GeneratedImage.objects.order_by("pk").values_list("source", "is_real", "gold__rationale", "public_id")
    keys = {job.pk, export.pk, run.pk, release.pk, *Rating.objects.values_list("pk", flat=True)[:2]}
    return {
        "uuid": [
            *Study.objects.values_list("public_id", flat=True),
            *one_of_each.values(),
            *{tuple(facts): public_id for *facts, public_id in images}.values(),
        ],
        "int": sorted(keys),
        "str": ["ratings", "losses", "agreement.csv", release.digest],
    }


def _image_keys() -> tuple[str, ...]:
    pairs = GeneratedImage.objects.values_list("public_id", "sha256")
    return tuple(str(part) for pair in pairs for part in pair)

"""A fixed world with something in every table: two studies, each with an owner and readers of its own, ratings,
exports, images, jobs, releases and training runs; and people of every role, signed in."""

import time
import uuid
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace

from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import SECRET_SESSION_KEY, TOTP
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from rest_framework.authtoken.models import Token

from accounts import second_factor
from accounts.services import invite, offer_new_password
from generation.certification import note_job
from generation.models import GeneratedImage, Redrawing, Release, ReleaseComparison
from generation.parameters import Parameters
from medsyn.artifacts import write_bytes
from medsyn.roles import CLINICIANS, STUDY_OWNERS
from ratings.models import Study
from ratings.services import (
    create_study,
    describe_study,
    draw_places,
    freeze_export,
    set_gold,
    submit_rating,
    void_rating,
)
from ratings.services.calibration_plans import plan_monitoring
from tests.access.addresses import admin_models
from tests.factories import (
    GeneratedImageFactory,
    GenerationJobFactory,
    PromptFactory,
    StudyFactory,
    UserFactory,
    png_bytes,
)
from tests.generation.small_releases import make_release
from tests.ratings.calibration_world import ARITHMETIC, SAMPLING, make_certificate, make_plan
from tests.training.runs import Purpose, State, make_checkpoint, make_pipeline, make_run
from training.models import ReadingBatch

TOTP_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"  # of everybody here who has a second factor, in base 32
# The columns of the matrix. Who has a token speaks by it and has no session.
ROLES = {
    "anonymous": "nobody",
    "clinician": "a clinician without a study",
    "reader": "a reader of the study",
    "other_reader": "a reader of another study",
    "owner": "a study owner, of the study",
    "other_owner": "a study owner, of another study",
    "admin": "an administrator who gave the second factor",
    "admin_token": "the administrator's token",
    "reader_token": "the reader's token",
    "deactivated": "a reader of the study whose account was closed while signed in",
    "admin_no_totp": "an administrator who has set up no second factor where one is required",
}


@dataclass
class World:
    people: dict[str, object] = field(default_factory=dict)  # by role, and some who have none
    credentials: dict[str, dict] = field(default_factory=dict)  # by role: {"session": key} or {"token": key} or {}
    study: Study | None = None
    other: Study | None = None
    places: dict[str, list] = field(default_factory=dict)  # by name of the reader, in order
    # What fills an address: by route, "segment/parameter", segment or parameter (addresses.Address.filled).
    values: dict[str, object] = field(default_factory=dict)


def build() -> World:
    """Everything, in the database and below ARTIFACT_ROOT."""
    world = World()
    _people(world)
    _studies(world)
    _generation(world)
    _certificates(world)
    _training(world)
    _reading_batches(world)
    _joining(world)
    _admin(world)
    for role, person in world.people.items():
        world.credentials[role] = _credentials(role, person)
    _deactivate(world.people["deactivated"])
    return world


def _people(world: World) -> None:
    names = ("clinician", "reader", "fellow", "other_reader", "owner", "other_owner", "deactivated", "newcomer")
    people = {name: UserFactory(username=name, email=f"{name}@hospital.example") for name in names}
    for name in ("owner", "other_owner"):
        people[name].groups.add(Group.objects.get_or_create(name=STUDY_OWNERS)[0])
    clinicians, _ = Group.objects.get_or_create(name=CLINICIANS)
    for name in ("clinician", "reader", "fellow", "other_reader", "deactivated"):
        people[name].groups.add(clinicians)
    for name in ("admin", "admin_no_totp"):
        people[name] = UserFactory(username=name, is_staff=True, is_superuser=True)
    world.people = {"anonymous": None, **people, "admin_token": people["admin"], "reader_token": people["reader"]}


def _studies(world: World) -> None:
    """Two open pools over the same images, with anchors; of each reader's first answers one is void."""
    people = world.people
    images, gold = GeneratedImageFactory.create_batch(5), GeneratedImageFactory.create_batch(4)
    for image in images:
        write_bytes(image.path.with_suffix(".json"), b"{}")
    for number, image in enumerate(gold):
        set_gold(image=image, grade=number % 3 + 1, set_by=people["admin"])
    made = {
        "images": images,
        "protocol": {"overlap_target": 3},
        "anchors": {number + 1: image for number, image in enumerate(gold[:3])},
    }
    readers = [(people[name], 2) for name in ("reader", "fellow", "deactivated")]
    world.study = create_study(name="Chest pilot", readers=readers, created_by=people["owner"], **made)
    readers = [(people["other_reader"], 1)]
    world.other = create_study(name="Other", readers=readers, created_by=people["other_owner"], **made)
    names = {}
    for key, study, name in (
        ("", world.study, "reader"),
        ("of fellow", world.study, "fellow"),
        ("of other", world.other, "other_reader"),
    ):
        draw_places(study=study, reader=people[name])
        names[key] = _things_of(study, people[name], owner=study.created_by)
    world.places = {"reader": list(world.study.assignments.filter(reader=people["reader"]).order_by("position"))}
    world.values |= (
        names.pop("") | names | {"name": "ratings", "tables": "agreement.csv", "image_id": gold[3].public_id}
    )
    world.values |= {
        "images": images[0].public_id,
        "images/public_id": images[0].public_id,
        "of crossed": {"memberships": names["of other"]["memberships"]},  # under the study's own address
    }


def _things_of(study: Study, reader, owner) -> dict[str, object]:
    """What belongs to a reader of a study, and to the study, by what stands for it in addresses."""
    places = study.assignments.filter(reader=reader).order_by("position")[:2]
    rating, void = [
        submit_rating(assignment=place, reader=reader, value=2, client_uuid=uuid.uuid4()) for place in places
    ]
    void_rating(rating=void, actor=owner, reason="A demonstration, not a judgement")
    export = freeze_export(study=study, created_by=owner)
    return {
        "study_id": study.public_id,
        "assignments": places[0].public_id,
        "memberships": study.memberships.get(reader=reader).pk,
        "anchors": study.protocol.anchors.get(grade=1).public_id,
        "exports": export.pk,
        **dict.fromkeys(("/api/ratings/<pk>/void/", "/data/<pk>/", "/data/<pk>/void/"), rating.pk),
        **dict.fromkeys(("/api/ratings/<pk>/restore/", "/data/<pk>/restore/"), void.pk),
    }


def _joining(world: World) -> None:
    """An invitation and a link for a new password, both unused; the administrator's second factor."""
    people = world.people
    invitation, token = invite(email="new@hospital.example", invited_by=people["admin"])
    _, password_token = offer_new_password(person=people["fellow"])
    for name in ("admin", "owner", "newcomer"):
        TOTP.activate(people[name], TOTP_SECRET)
        RecoveryCodes.activate(people[name])
    world.values |= {
        "join": token,
        "new/token": password_token,
        "invitations": invitation.pk,
        "people": people["newcomer"].pk,
        "user/id": people["newcomer"].pk,
    }


def _generation(world: World) -> None:
    job = GenerationJobFactory(state=State.FAILED, created_by=world.people["admin"])
    job.job_prompts.create(prompt=PromptFactory(text="Fundus: drusen"), position=0)
    drawn = GeneratedImageFactory(job=job, position=0, verdict=GeneratedImage.Verdict.UNFILTERED)
    running = GenerationJobFactory(state=State.RUNNING)
    before = make_release("before", active=True)
    Release.objects.update(is_active=False)
    release = make_release("served", active=True)
    made = {"left": job, "right": running}
    over = ReleaseComparison.objects.create(**made, state=State.FAILED)
    under_way = ReleaseComparison.objects.create(left=running, right=GenerationJobFactory(release=before))
    image = GeneratedImage.objects.get(public_id=world.values["images"])
    nearest = {"dataset": str(settings.ARTIFACT_ROOT), "name": image.file, "sha256": image.sha256}
    GeneratedImage.objects.filter(pk=image.pk).update(resembles=nearest | {"similarity": 1.0, "p_value": 0.005})
    redrawing = Redrawing.objects.create(image=image, state=State.SUCCEEDED, different_pixels=1, file=image.file)
    world.values |= {
        "compare": over.pk,
        "release-comparisons": over.pk,
        "/releases/compare/<pk>/cancel/": under_way.pk,
        "/api/release-comparisons/<pk>/cancel/": under_way.pk,
        "/images/<public_id>/redraw/": drawn.public_id,
        "redrawn": redrawing.pk,
        "/releases/<pk>/activate/": before.pk,
        "/api/releases/<digest>/activate/": before.digest,
        "image of no study": drawn.public_id,
        "/generate/<pk>/cancel/": running.pk,
        "/api/generation-jobs/<pk>/cancel/": running.pk,
        "generate": job.pk,
        "generation-jobs": job.pk,
        "releases/pk": release.pk,
        "releases/digest": release.digest,
    }


def _certificates(world: World) -> None:
    """A certificate that holds, with a served image that the drift monitor has yet to see and one to be drawn; a
    calibration set of which nothing is left to rate, and a job to draw another from."""
    release = Release.objects.get(pk=world.values["releases/pk"])
    certificate = make_certificate(release)
    plan = make_plan(release, StudyFactory(name="Drawn at random", created_by=world.people["admin"]))
    scored = {"selector_score": 0.5, "policy_score": 0.5, "verdict": GeneratedImage.Verdict.ACCEPTED}
    scored["parameters"] = ARITHMETIC.as_dict()
    jobs = []
    for threshold in (certificate.threshold, 0):
        parameters = Parameters(**SAMPLING, quality_threshold=threshold).as_dict()
        job = GenerationJobFactory(mode="rlhf", state=State.SUCCEEDED, release=release, parameters=parameters)
        job.spent = {"candidates": 2, "stopped": 0, "dropped": 0}
        job.save()
        prompt = PromptFactory(text="Fundus: no abnormality")
        job.job_prompts.create(prompt=prompt, position=0)
        for position in range(2):
            GeneratedImageFactory(job=job, prompt=prompt, release=release, position=position, **scored)
        jobs.append(job)
    note_job(job=jobs[0], certificate=certificate)
    watched = plan_monitoring(name="In service", certificate=certificate, num_images=1)
    describe_study(study=watched.study, is_open=False)  # what nobody graded by then counts as poor
    world.values |= {"certificates": certificate.pk, "plans": plan.public_id, "job to calibrate with": jobs[1].pk}


def _training(world: World) -> None:
    pipeline = make_pipeline(settings.ARTIFACT_ROOT / "pipelines" / "small")
    write_bytes(pipeline / "model_index.json", b'{"draws_phantoms": true}')  # an update needs no dataset then
    run = make_run(Purpose.RLHF, state=State.SUCCEEDED, generator=str(pipeline), figures={"pass_rate": 0.75})
    make_checkpoint(run, 5)
    (run.path / "validation").mkdir()
    write_bytes(run.path / "validation" / "step_500.png", png_bytes(1))
    failed = make_run(Purpose.RLHF, state=State.FAILED, generator=str(pipeline))
    running = make_run(Purpose.RLHF, state=State.RUNNING, generator=str(pipeline))
    dataset = settings.ARTIFACT_ROOT / "dataset" / "data.csv"
    write_bytes(dataset.with_name("a.png"), png_bytes(2))
    write_bytes(dataset, b"path,Text,modality\na.png,OCT: drusen,OCT\n")
    world.values |= {
        "training": run.pk,
        "runs": run.pk,
        "/training/<pk>/resume/": failed.pk,
        "/api/training/runs/<pk>/resume/": failed.pk,
        "/training/<pk>/cancel/": running.pk,
        "/api/training/runs/<pk>/cancel/": running.pk,
        "charts": "losses",
        "cost": "rlhf",
        "validation": 500,
        "dataset": dataset,
        "pipeline": pipeline,
    }


def _reading_batches(world: World) -> None:
    """Images of either study that a release's selector chose, and why."""
    release = Release.objects.get(pk=world.values["releases/pk"])
    batches = {}
    for study in (world.study, world.other):
        shares = {"random_share": 0.4, "exploring_share": 0.1, "shortlist_share": 0.2}
        made = {"num_images": 1, "with_rejected": True, "seed": 1, "block": 0, "state": State.SUCCEEDED}
        batch = ReadingBatch.objects.create(study=study, release=release, **made, **shares)
        image = study.images.first()
        batch.picks.create(image=image, position=0, reason="model", information=0.31415926, poor=0.27182818)
        batches[study] = {"batches": batch.pk, "reading-batches": batch.pk}
    world.values |= batches[world.study]
    world.values["of other"] |= batches[world.other]


def _admin(world: World) -> None:
    """A row of every model that the admin shows, where there is one; rows that are not there do not exist (404)."""
    for name, model in admin_models().items():
        row = model._base_manager.order_by("pk").first()
        world.values[f"admin/{name}"] = "0" if row is None else row.pk
    study = ContentType.objects.get_for_model(Study)
    world.values |= {
        "app_label": "ratings",
        "url": "nothing/here/",
        "content_type_id": study.pk,
        "object_id": world.study.pk,
    }


def _credentials(role: str, person) -> dict:
    if person is None:
        return {}
    if role.endswith("_token"):
        return {"token": Token.objects.get_or_create(user=person)[0].key}
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(person.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = person.get_session_auth_hash()
    if role != "admin_no_totp":
        second_factor.note_passed(SimpleNamespace(session=session))
    session["signed_in_at"] = time.time()
    session[SECRET_SESSION_KEY] = TOTP_SECRET  # as if the page that sets it up had been opened
    session.create()
    return {"session": session.session_key}


def _deactivate(person) -> None:
    person.is_active = False
    person.save()

"""Every list, page and API alike, asks the database as often for nine rows of each kind as for three.

Each row has people, releases, prompts and studies of its own: what is asked once for each of them shows.
"""

import uuid
from collections.abc import Iterable
from datetime import timedelta

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import Invitation
from generation.certification import revoke
from generation.models import GeneratedImage, GenerationJob, Release, ReleaseComparison
from medsyn.modalities import KINDS
from ratings.models import Export, GoldGrade, Study
from ratings.services import add_images, create_study, enrol_reader, submit_rating
from tests.factories import GeneratedImageFactory, GenerationJobFactory, PromptFactory, StudyOwnerFactory
from tests.ratings.calibration_world import SAMPLING, make_certificate, make_plan
from tests.training.runs import make_run
from training.models import Checkpoint, ReadingBatch

pytestmark = pytest.mark.django_db
SUCCEEDED = GenerationJob.State.SUCCEEDED


def _release(number: int, person) -> Release:
    """One with three certificates: one holds, one was revoked, one is of other files than the release has now."""
    digests = {f"{part}_sha256": f"{number:064x}" for part in ("pipeline", "selector", "policy")}
    release = Release.objects.create(
        digest=f"{number:064x}", name=f"Release {number}", quality_threshold=0.5, manifest={}, **digests
    )
    release.activations.create(activated_at=timezone.now(), activated_by=person)
    make_certificate(release)
    revoke(certificate=make_certificate(release, kind="oct"), reason="Drift.")
    changed = make_certificate(release, kind="chest-xray")
    changed.pipeline["generator"] = "0" * 64
    changed.save()
    return release


def _images(number: int, release: Release, job: GenerationJob) -> GeneratedImage:
    """A job of two prompts with an image of each verdict, and the same in ``job``. Returns its accepted one."""
    prompt = PromptFactory(text=f"{KINDS[number % len(KINDS)].prefix}: finding number {number}")
    own = GenerationJobFactory(mode="rlhf", release=release, parameters=SAMPLING)
    for position, each in enumerate((prompt, PromptFactory())):
        own.job_prompts.create(prompt=each, position=position)
    given = {"prompt": prompt, "release": release, "selector_score": 0.5, "policy_score": 0.5}
    for position, verdict in enumerate(("accepted", "rejected", "blocked")):
        given["resembles"] = {"name": "a.png"} if verdict == "blocked" else None
        GeneratedImageFactory(job=own, position=position, verdict=verdict, **given)
        GeneratedImageFactory(job=job, position=3 * number + position, verdict=verdict, **given)
    return own.images.get(position=0)


def _ratings(number: int, person, image: GeneratedImage, study: Study) -> Study:
    """A study with a reader who rated, its export and the repetition of that; a reader more of ``study``."""
    own = create_study(name=f"Study {number}", images=[image], readers=[(person, 2)], created_by=person)
    place = own.assignments.get(reader=person)
    submit_rating(assignment=place, reader=person, value=2, client_uuid=uuid.uuid4())
    add_images(study=study, images=[image])
    enrol_reader(study=study, reader=person, expert_level=1)
    known = GeneratedImageFactory()
    GoldGrade.objects.create(image=known, grade=1, set_by=person)
    files = {"ratings": {"file": f"{number}.csv", "sha256": "0" * 64, "row_count": 1}}
    given = {"study": own, "file": f"{number}.csv", "sha256": "0" * 64, "row_count": 1, "files": files}
    first = Export.objects.create(created_by=person, **given)
    Export.objects.create(created_by=person, rerun_of=first, **given)
    return own


def _runs(number: int, person, release: Release, own: Study, image: GeneratedImage, study: Study) -> None:
    """Runs that wait, work and are done; a comparison; a batch of ``study``; a plan; an invitation."""
    export = own.exports.earliest("pk")
    for state in ("queued", "running", "succeeded"):
        given = {"state": state, "export": export, "release": release, "parent_release": release}
        run = make_run(created_by=person, heartbeat_at=timezone.now(), device=f"host/{state}:{number}", **given)
        Checkpoint.objects.create(run=run, name="epoch_1", step=1, manifest_sha256="0" * 64)
    other = GenerationJobFactory(release=release)
    ReleaseComparison.objects.create(left=image.job, right=other, created_by=person)
    shares = {"random_share": 0.4, "exploring_share": 0.1, "shortlist_share": 0.2, "num_images": 1}
    batch = ReadingBatch.objects.create(
        study=study, release=release, seed=number, with_rejected=False, state=SUCCEEDED, created_by=person, **shares
    )
    batch.jobs.add(image.job, other)
    certificate = release.certificates.first()
    make_plan(release, create_study(name=f"Plan {number}", images=[]), certificate=certificate, purpose="monitor")
    invitation = Invitation.objects.create(
        email=f"{number}@example.org",
        token_sha256=f"{number:064x}",
        created_by=person,
        expires_at=timezone.now() + timedelta(days=1),
    )
    invitation.studies.add(own)


@pytest.fixture
def study(bob) -> Study:
    """That of which images, readers and batches are listed."""
    return create_study(name="Of all", images=[GeneratedImageFactory()], readers=[(bob, 2)])


@pytest.fixture
def job() -> GenerationJob:
    """That whose gallery is looked at."""
    made = GenerationJobFactory(mode="rlhf", parameters=SAMPLING, num_images=100)
    made.job_prompts.create(prompt=PromptFactory(), position=0)
    return made


def grow(numbers: Iterable[int], study: Study, job: GenerationJob) -> None:
    """For each number a row more of every kind; a reader, three images and a batch more in ``study``, three images
    more in ``job``."""
    for number in numbers:
        person = StudyOwnerFactory()
        release = _release(number, person)
        image = _images(number, release, job)
        own = _ratings(number, person, image, study)
        _runs(number, person, release, own, image, study)


ADDRESSES = [
    "/releases/", "/releases/compare/", "/generate/", "/generate/{job}/", "/generate/{job}/gallery/", "/images/",
    "/certificates/", "/certificates/plan/", "/training/", "/training/new/rlhf/",
    "/studies/", "/studies/new/", "/studies/{study}/", "/studies/{study}/images/", "/studies/{study}/batches/",
    "/data/", "/data/exports/", "/data/gold/", "/people/", "/people/invite/",
    "/api/releases/", "/api/release-activations/", "/api/release-comparisons/", "/api/generation-jobs/",
    "/api/images/", "/api/certificates/", "/api/training/runs/", "/api/studies/", "/api/studies/{study}/readers/",
    "/api/studies/{study}/memberships/", "/api/studies/{study}/reading-batches/", "/api/exports/", "/api/ratings/",
    "/api/gold/",
]  # fmt: skip


@pytest.mark.slow
def test_no_list_asks_more_the_longer_it_is(study, job, alice, signed_in):
    staff, urls = signed_in(alice), [each.format(study=study.public_id, job=job.pk) for each in ADDRESSES]
    models = [model._meta for model in admin.site._registry]
    tables = [reverse(f"admin:{each.app_label}_{each.model_name}_changelist") for each in models]

    def cost(url: str) -> tuple[int, int]:
        """Queries and bytes, once what is computed once in a process or for a state of a study is known."""
        assert staff.get(url).status_code == 200, url
        with CaptureQueriesContext(connection) as captured:
            size = len(staff.get(url).content)
        return len(captured), size

    grow(range(3), study, job)
    of_three = {url: cost(url) for url in urls + tables}
    grow(range(3, 9), study, job)
    of_nine = {url: cost(url) for url in urls + tables}
    assert not [url for url in urls if of_nine[url][1] <= of_three[url][1]], "these show no more rows than before"
    assert {url: asked for url, (asked, _) in of_nine.items()} == {url: asked for url, (asked, _) in of_three.items()}

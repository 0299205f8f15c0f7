"""Rows for tests, with real files behind them: an image of the database is a PNG on the disk."""

import io

import factory
import numpy as np
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from factory.django import DjangoModelFactory, Password
from PIL import Image

from generation.models import GeneratedImage, GenerationJob, Prompt
from medsyn.artifacts import file_sha256, write_bytes
from medsyn.modalities import parse_prompt
from medsyn.roles import STUDY_OWNERS
from ratings.models import Membership, Protocol, Study, StudyImage

PASSWORD = "correct-horse-battery"


def png_bytes(seed: int, *, size: int = 16) -> bytes:
    """A PNG of (size, size, 3) that differs from seed to seed: smooth blobs and noise, not one flat grey."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((size, size))
    noise = random.integers(-12, 13, (size, size, 3))
    pixels = np.clip(np.asarray(coarse, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class UserFactory(DjangoModelFactory):
    """A person who may sign in with PASSWORD; is_staff=True makes an admin."""

    class Meta:
        model = get_user_model()
        skip_postgeneration_save = True

    username = factory.Sequence("reader{}".format)
    password = Password(PASSWORD)


class StudyOwnerFactory(UserFactory):
    """A person who runs studies."""

    @factory.post_generation
    def role(self, create, extracted, **kwargs):
        self.groups.add(Group.objects.get_or_create(name=STUDY_OWNERS)[0])


class PromptFactory(DjangoModelFactory):
    class Meta:
        model = Prompt
        django_get_or_create = ("text",)

    text = factory.Sequence("Chest X-ray: finding number {}".format)
    kind = factory.LazyAttribute(lambda prompt: parse_prompt(prompt.text).kind.slug)


class GenerationJobFactory(DjangoModelFactory):
    class Meta:
        model = GenerationJob

    seed = factory.Sequence(lambda n: 1000 * n)
    num_images = 1


class GeneratedImageFactory(DjangoModelFactory):
    """An image made by a job of its own (or ``job=``), its PNG under ARTIFACT_ROOT/images/."""

    class Meta:
        model = GeneratedImage

    class Params:
        number = factory.Sequence(int)
        imported = factory.Trait(source=GeneratedImage.Source.IMPORTED, job=None, seed=None)

    prompt = factory.SubFactory(PromptFactory)
    job = factory.SubFactory(GenerationJobFactory)
    position = factory.LazyAttribute(lambda image: image.number if image.job else 0)
    seed = factory.LazyAttribute(lambda image: image.job.seed + image.position)
    model_name = "medsyn-tiny"
    weights_sha256 = "5" * 64
    width = height = 16
    file = factory.LazyAttribute(lambda image: f"images/factory/{image.number}.png")

    @factory.lazy_attribute
    def sha256(self) -> str:
        path = settings.ARTIFACT_ROOT / self.file
        write_bytes(path, png_bytes(self.number, size=self.width))
        return file_sha256(path)


class StudyFactory(DjangoModelFactory):
    """An open study; ``images=[...]`` puts images into block 0, ``protocol__overlap_target=2`` sets its
    protocol. Enrol readers with ratings.services."""

    class Meta:
        model = Study
        skip_postgeneration_save = True

    name = factory.Sequence("Study {}".format)
    order_seed = factory.Sequence(int)

    @factory.post_generation
    def protocol(study, create, extracted, **kwargs):
        Protocol.objects.create(study=study, **kwargs)

    @factory.post_generation
    def images(study, create, extracted, **kwargs):
        StudyImage.objects.bulk_create(StudyImage(study=study, image=image) for image in extracted or ())


class MembershipFactory(DjangoModelFactory):
    """A bare membership, without the reading list that ratings.services.enrol_reader makes."""

    class Meta:
        model = Membership

    study = factory.SubFactory(StudyFactory)
    reader = factory.SubFactory(UserFactory)
    expert_level = 2

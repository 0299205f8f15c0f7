"""What the API shows of studies and ratings. What readers get is a class of its own: nothing leaks by a new field."""

from django.contrib.auth import get_user_model
from rest_framework import serializers
from rest_framework.reverse import reverse

from generation.models import GeneratedImage
from medsyn.modalities import MODALITIES
from ratings.csv_schema import GRADES
from ratings.export import FILE_NAMES
from ratings.models import Assignment, Export, Membership, Rating, Study

_DAY_MS = 24 * 3600 * 1000


class ProgressSerializer(serializers.Serializer):
    """How far a reading list has come."""

    done = serializers.IntegerField(help_text="Images rated.")
    total = serializers.IntegerField(help_text="Images in the list.")
    mean_active_ms = serializers.FloatField(
        allow_null=True, help_text="Mean time an image was looked at, in milliseconds."
    )


class ReaderProgressSerializer(ProgressSerializer):
    reader = serializers.CharField()
    expert_level = serializers.IntegerField()
    last_at = serializers.DateTimeField(allow_null=True)


class StudySerializer(serializers.ModelSerializer):
    """A study as its readers see it."""

    id = serializers.UUIDField(source="public_id", read_only=True)
    progress = serializers.SerializerMethodField()

    class Meta:
        model = Study
        fields = ["id", "name", "description", "is_open", "is_simulated", "progress"]
        read_only_fields = ["is_simulated"]

    def get_progress(self, study: Study) -> dict[str, int]:
        row = self.context["progress"].get(study.pk, {"done": 0, "total": 0})
        return {"done": row["done"], "total": row["total"]}


class StudyImagesSerializer(serializers.Serializer):
    images = serializers.ListField(
        child=serializers.UUIDField(), max_length=10_000, allow_empty=False, help_text="Ids of the images."
    )

    def validate_images(self, ids: list) -> list[GeneratedImage]:
        found = list(GeneratedImage.objects.filter(public_id__in=ids))
        unknown = set(ids) - {image.public_id for image in found}
        if unknown:
            raise serializers.ValidationError(f"No images with these ids: {', '.join(sorted(map(str, unknown)))}.")
        return found


class NewStudySerializer(StudyImagesSerializer):
    name = serializers.CharField(max_length=200)
    description = serializers.CharField(allow_blank=True, default="")
    order_seed = serializers.IntegerField(
        min_value=0, max_value=2**62, required=False, help_text="Fixes the readers' orders; drawn where left out."
    )


class AddedImagesSerializer(serializers.Serializer):
    added = serializers.IntegerField(help_text="Images that the study did not have before.")


class MembershipSerializer(serializers.ModelSerializer):
    reader = serializers.SlugRelatedField(slug_field="username", queryset=get_user_model().objects.all())

    class Meta:
        model = Membership
        fields = ["id", "reader", "expert_level", "is_simulated", "joined_at"]
        read_only_fields = ["is_simulated", "joined_at"]


class LevelSerializer(serializers.ModelSerializer):
    """A change of level: it holds for ratings given from now on."""

    class Meta:
        model = Membership
        fields = ["expert_level"]


class QueueSerializer(serializers.ModelSerializer):
    """A place in the reading list, blind: the prompt, the address of the pixels, nothing else."""

    id = serializers.UUIDField(source="public_id", read_only=True)
    prompt = serializers.CharField(source="image.prompt.text", read_only=True)
    image = serializers.SerializerMethodField()
    revision = serializers.SerializerMethodField(help_text="0, or how often this rating was given and taken back.")

    class Meta:
        model = Assignment
        fields = ["id", "prompt", "image", "revision"]

    def get_image(self, assignment: Assignment) -> str:
        return reverse("ratings_api:assignment-image", args=[assignment.public_id])

    def get_revision(self, assignment: Assignment) -> int:
        return assignment.rating.revision if hasattr(assignment, "rating") else 0


class SubmissionSerializer(serializers.Serializer):
    """A rating as a client sends it."""

    value = serializers.ChoiceField(
        choices=[(value, label) for value, label in GRADES.items()],
        error_messages={"invalid_choice": "The rating is {input}; it must be 1, 2 or 3."},
        help_text="1 poor, 2 acceptable, 3 excellent.",
    )
    client_uuid = serializers.UUIDField(help_text="Made once per submission; sent again, it changes nothing.")
    revision = serializers.IntegerField(min_value=0, default=0, help_text="As last seen; 0: never rated.")
    shown_at = serializers.DateTimeField(required=False, allow_null=True)
    active_ms = serializers.IntegerField(min_value=0, max_value=_DAY_MS, required=False, allow_null=True)
    client_time = serializers.DateTimeField(required=False, allow_null=True)


class UndoSerializer(serializers.Serializer):
    client_uuid = serializers.UUIDField(help_text="Made once per undo; sent again, it takes back nothing more.")
    client_time = serializers.DateTimeField(required=False, allow_null=True)


class UndoneSerializer(serializers.Serializer):
    assignment = QueueSerializer(allow_null=True, help_text="What is to be rated again; null: nothing was left.")
    value = serializers.IntegerField(allow_null=True, help_text="The rating that was taken back.")


class OwnRatingSerializer(serializers.ModelSerializer):
    """A reader's own rating as stored."""

    assignment = serializers.UUIDField(source="assignment.public_id", read_only=True)

    class Meta:
        model = Rating
        fields = ["assignment", "value", "state", "revision", "submitted_at"]


class ConflictSerializer(serializers.Serializer):
    detail = serializers.CharField()
    code = serializers.ChoiceField(choices=["stale_revision", "study_closed"])
    rating = OwnRatingSerializer(allow_null=True, help_text="How the rating stands.")


class RatingSerializer(serializers.ModelSerializer):
    """A rating as administrators see it."""

    study = serializers.CharField(source="assignment.study.name")
    reader = serializers.CharField(source="assignment.reader.username")
    image = serializers.UUIDField(source="assignment.image.public_id")
    prompt = serializers.CharField(source="assignment.image.prompt.text")
    modality = serializers.CharField(source="assignment.image.prompt.modality")

    class Meta:
        model = Rating
        fields = [
            "id", "study", "reader", "image", "prompt", "modality", "value", "expert_level", "state", "revision",
            "is_simulated", "active_ms", "shown_at", "submitted_at",
        ]  # fmt: skip


class NewExportSerializer(serializers.Serializer):
    study = serializers.SlugRelatedField(
        slug_field="public_id", queryset=Study.objects.all(), required=False, allow_null=True, default=None
    )
    modality = serializers.ChoiceField(choices=MODALITIES, required=False, allow_blank=True, default="")
    include_simulated = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="Null: ratings of simulated experts only where the study is a simulated one.",
    )


class ExportSerializer(serializers.ModelSerializer):
    study = serializers.UUIDField(source="study.public_id", allow_null=True, default=None)
    files = serializers.SerializerMethodField()

    class Meta:
        model = Export
        fields = ["id", "study", "row_count", "sha256", "has_simulated", "filters", "created_at", "files"]

    def get_files(self, export: Export) -> dict[str, str]:
        return {name: reverse("ratings_api:export-file", args=[export.pk, name]) for name in FILE_NAMES}

"""What the API shows of studies and ratings. What readers get is a class of its own: nothing leaks by a new field."""

from collections.abc import Iterable

from django.contrib.auth import get_user_model
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.reverse import reverse

from generation.models import GeneratedImage
from ratings.answer_codes import CANNOT_JUDGE_REASONS, MAX_COMMENT
from ratings.csv_schema import GRADES
from ratings.models import Anchor, Assignment, GoldGrade, Membership, Protocol, Rating, Study

_DAY_MS = 24 * 3600 * 1000


class ProgressSerializer(serializers.Serializer):
    """How far a reading list has come. The training round counts apart."""

    done = serializers.IntegerField(help_text="Images rated.")
    total = serializers.IntegerField(help_text="Images in the list, and those that an open pool still has to give.")
    training_done = serializers.IntegerField(help_text="Images of the training round answered.")
    training_total = serializers.IntegerField(help_text="Images of the training round.")
    mean_active_ms = serializers.FloatField(
        allow_null=True, help_text="Mean time an image was looked at, in milliseconds."
    )


class OwnProgressSerializer(ProgressSerializer):
    left_in_pool = serializers.IntegerField(
        help_text="How much of total nobody is given yet: in an open pool others may take it first."
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


def _images_of(ids: Iterable) -> dict:
    """By public id. Raises ValidationError that names the ids that no image has."""
    ids = set(ids)
    found = GeneratedImage.objects.filter(public_id__in=ids).select_related("prompt").in_bulk(field_name="public_id")
    unknown = ids - found.keys()
    if unknown:
        raise serializers.ValidationError(f"No images with these ids: {', '.join(sorted(map(str, unknown)))}.")
    return found


class StudyImagesSerializer(serializers.Serializer):
    images = serializers.ListField(
        child=serializers.UUIDField(), max_length=10_000, allow_empty=False, help_text="Ids of the images."
    )

    def validate_images(self, ids: list) -> list[GeneratedImage]:
        return list(_images_of(ids).values())


class _AnchorsField(serializers.DictField):
    """Image ids by grade, "1" to "3"; null: none. Images by grade once checked."""

    child = serializers.UUIDField(allow_null=True)

    def to_internal_value(self, data) -> dict[int, GeneratedImage | None]:
        ids = super().to_internal_value(data)
        unknown = ids.keys() - {str(grade) for grade in GRADES}
        if unknown:
            raise serializers.ValidationError(f"There is no grade {sorted(unknown)[0]!r}; grades are 1, 2 and 3.")
        images = _images_of(key for key in ids.values() if key is not None)
        return {int(grade): images.get(key) for grade, key in ids.items()}

    def to_representation(self, value) -> dict[str, str]:
        return {str(anchor.grade): str(anchor.image.public_id) for anchor in value.all()}


class ProtocolSerializer(serializers.ModelSerializer):
    """How a study is read. services.revise_protocol checks the ranges."""

    is_frozen = serializers.SerializerMethodField(help_text="Rated under: changes make a new version.")
    anchors = _AnchorsField(required=False, help_text="Id of the example image by grade.")

    class Meta:
        model = Protocol
        fields = [
            "version", "is_frozen", "scale_texts", "defects", "overlap_target", "repeat_share", "repeat_distance",
            "gold_share", "real_share", "calibration_share", "num_training_images", "anchors", "reason",
        ]  # fmt: skip
        read_only_fields = ["version"]

    def get_is_frozen(self, protocol: Protocol) -> bool:
        return protocol.study.frozen_at is not None


class NewStudySerializer(StudyImagesSerializer):
    name = serializers.CharField(max_length=200)
    description = serializers.CharField(allow_blank=True, default="")
    order_seed = serializers.IntegerField(
        min_value=0, max_value=2**62, required=False, help_text="Fixes the readers' orders; drawn where left out."
    )
    protocol = ProtocolSerializer(required=False, help_text="Fields that are left out have their defaults.")

    def validate_protocol(self, given: dict) -> dict:
        if given.pop("reason", ""):
            raise serializers.ValidationError({"reason": "The first version of a protocol needs no reason."})
        return given

    def validate(self, given: dict) -> dict:
        if "protocol" in given:
            given["anchors"] = given["protocol"].pop("anchors", {})
        return given


class AddedImagesSerializer(serializers.Serializer):
    added = serializers.IntegerField(help_text="Images that the study did not have before.")


class MembershipSerializer(serializers.ModelSerializer):
    reader = serializers.SlugRelatedField(slug_field="username", queryset=get_user_model().objects.all())

    class Meta:
        model = Membership
        fields = ["id", "reader", "expert_level", "is_simulated", "joined_at"]
        read_only_fields = ["is_simulated", "joined_at"]


class ReasonSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=2000, help_text="Why; kept with what is done.")


class GivingBackSerializer(serializers.Serializer):
    reader = serializers.SlugRelatedField(
        slug_field="username", queryset=get_user_model().objects.all(), help_text="User name."
    )


class GivenBackSerializer(serializers.Serializer):
    released = serializers.IntegerField(help_text="Places given back to the pool.")


class GoldSerializer(serializers.ModelSerializer):
    """An image whose grade is known."""

    image = serializers.SlugRelatedField(slug_field="public_id", queryset=GeneratedImage.objects.all())
    grade = serializers.IntegerField(min_value=1, max_value=3, help_text="1 poor, 2 acceptable, 3 excellent.")

    class Meta:
        model = GoldGrade
        fields = ["image", "grade", "rationale", "created_at"]
        read_only_fields = ["created_at"]
        extra_kwargs = {"image": {"validators": []}}  # set again, it changes


class AnchorSerializer(serializers.Serializer):
    grade = serializers.IntegerField()
    image = serializers.SerializerMethodField(help_text="Address of the pixels.")

    def get_image(self, anchor: Anchor) -> str:
        return reverse("ratings_api:anchor-image", args=[anchor.public_id])


class AnchorsSerializer(serializers.Serializer):
    """The examples of the grades under the protocol that holds now."""

    anchors = AnchorSerializer(many=True)


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
    is_training = serializers.SerializerMethodField(help_text="Of the training round: the reply tells the grade.")

    class Meta:
        model = Assignment
        fields = ["id", "prompt", "image", "revision", "is_training"]

    def get_is_training(self, assignment: Assignment) -> bool:
        return assignment.kind == Assignment.Kind.TRAINING

    def get_image(self, assignment: Assignment) -> str:
        return reverse("ratings_api:assignment-image", args=[assignment.public_id])

    def get_revision(self, assignment: Assignment) -> int:
        return assignment.rating.revision if hasattr(assignment, "rating") else 0


class _FromAReader(serializers.Serializer):
    """What every request of the rating page carries."""

    client_uuid = serializers.UUIDField(help_text="Made once per request; sent again, it changes nothing.")
    client_time = serializers.DateTimeField(
        required=False, allow_null=True, help_text="When it was done, by the reader's clock."
    )
    reader = serializers.IntegerField(
        required=False,
        allow_null=True,
        help_text="Key of the person who did it; refused with 403 where somebody else is signed in by now.",
    )


class _WithRemarks(serializers.Serializer):
    """Defects and a comment, replaced as a whole."""

    defects = serializers.ListField(
        child=serializers.CharField(max_length=30),
        max_length=50,
        default=list,
        help_text="Codes of the study's protocol.",
    )
    comment = serializers.CharField(allow_blank=True, default="", max_length=MAX_COMMENT)


class _FourDecimals(serializers.FloatField):
    """A figure that is measured, not counted: with more digits, or with exponents, databases would write it
    differently into the same export."""

    def to_internal_value(self, data) -> float:
        return round(super().to_internal_value(data), 4) + 0.0  # no minus zero


class DisplaySerializer(serializers.Serializer):
    """How the image was shown."""

    viewport_width = serializers.IntegerField(min_value=1, max_value=100_000, help_text="CSS pixels.")
    viewport_height = serializers.IntegerField(min_value=1, max_value=100_000, help_text="CSS pixels.")
    device_pixel_ratio = _FourDecimals(
        min_value=0.05, max_value=50, help_text="Screen pixels per CSS pixel; the browser's zoom is part of it."
    )
    window_width = _FourDecimals(
        required=False, min_value=0, max_value=1_000_000, help_text="When answering, in window_unit."
    )
    window_center = _FourDecimals(
        required=False, min_value=-1_000_000, max_value=1_000_000, help_text="When answering, in window_unit."
    )
    window_unit = serializers.ChoiceField(
        required=False,
        choices=["HU", "%"],
        help_text="HU: Hounsfield units; %: from black (0) to white (100) as the image was shown at first.",
    )
    zoom = _FourDecimals(
        required=False, min_value=0, max_value=10_000, help_text="CSS pixels per pixel of the image."
    )
    inverted = serializers.BooleanField(required=False, help_text="Black shown as white.")
    window_touched = serializers.BooleanField(required=False, help_text="The reader changed the window or inverted.")
    zoom_touched = serializers.BooleanField(required=False, help_text="The reader zoomed or panned.")


class SubmissionSerializer(_FromAReader, _WithRemarks):
    """A rating as a client sends it, or with ``value`` null the reason why the image cannot be judged."""

    value = serializers.ChoiceField(
        choices=[(value, label) for value, label in GRADES.items()],
        allow_null=True,
        error_messages={"invalid_choice": "The rating is {input}; it must be 1, 2 or 3."},
        help_text="1 poor, 2 acceptable, 3 excellent; null: cannot be judged.",
    )
    cannot_judge = serializers.ChoiceField(
        choices=list(CANNOT_JUDGE_REASONS.items()),
        allow_blank=True,
        default="",
        help_text="Needed where value is null.",
    )
    revision = serializers.IntegerField(min_value=0, default=0, help_text="As last seen; 0: never rated.")
    shown_at = serializers.DateTimeField(required=False, allow_null=True, help_text="After the paint.")
    first_input_at = serializers.DateTimeField(required=False, allow_null=True)
    active_ms = serializers.IntegerField(min_value=0, max_value=_DAY_MS, required=False, allow_null=True)
    display = DisplaySerializer(required=False)

    def validate(self, given: dict) -> dict:
        if given["value"] is None and not given["cannot_judge"]:
            raise serializers.ValidationError({"value": "The rating is missing; it must be 1, 2 or 3."})
        if given["value"] is not None and given["cannot_judge"]:
            raise serializers.ValidationError({"cannot_judge": "An image that is rated can be judged: leave it out."})
        return given


class RemarkSerializer(_FromAReader, _WithRemarks):
    """Defects and comment for an answer that stands."""

    revision = serializers.IntegerField(min_value=1, help_text="As last seen.")


class UndoSerializer(_FromAReader):
    """Which answer to take back: the last one, or that of ``assignment`` at ``revision``."""

    assignment = serializers.UUIDField(required=False, allow_null=True)
    revision = serializers.IntegerField(min_value=1, required=False, allow_null=True)


class UndoneSerializer(serializers.Serializer):
    assignment = QueueSerializer(allow_null=True, help_text="What is to be rated again; null: nothing was left.")
    value = serializers.IntegerField(
        allow_null=True, help_text="The rating that was taken back; null: it could not be judged."
    )


class OwnRatingSerializer(serializers.ModelSerializer):
    """A reader's own rating as stored."""

    assignment = serializers.UUIDField(source="assignment.public_id", read_only=True)

    class Meta:
        model = Rating
        fields = [
            "assignment", "value", "cannot_judge", "defects", "comment", "state", "revision", "submitted_at",
        ]  # fmt: skip


class FeedbackSerializer(serializers.Serializer):
    gold = serializers.IntegerField(help_text="The known grade, 1 to 3.")
    rationale = serializers.CharField(help_text="Why; may be empty.")


class AnsweredSerializer(OwnRatingSerializer):
    """A reader's own rating as stored; in the training round with the grade that the image is known to have."""

    feedback = serializers.SerializerMethodField()

    class Meta(OwnRatingSerializer.Meta):
        fields = [*OwnRatingSerializer.Meta.fields, "feedback"]

    @extend_schema_field(FeedbackSerializer(allow_null=True))
    def get_feedback(self, rating: Rating) -> dict | None:
        if rating.assignment.kind != Assignment.Kind.TRAINING or rating.state not in Rating.ANSWERED:
            return None
        gold = GoldGrade.objects.get(image=rating.assignment.image_id)  # never cleared while a round shows it
        return {"gold": gold.grade, "rationale": gold.rationale}


class ConflictSerializer(serializers.Serializer):
    detail = serializers.CharField()
    code = serializers.ChoiceField(choices=["stale_revision", "study_closed", "void", "place_given_away"])
    rating = OwnRatingSerializer(allow_null=True, help_text="How the rating stands.")


class RatingSerializer(serializers.ModelSerializer):
    """A rating as those who run its study see it."""

    study = serializers.CharField(source="assignment.study.name")
    reader = serializers.CharField(source="assignment.reader.username")
    image = serializers.UUIDField(source="assignment.image.public_id")
    prompt = serializers.CharField(source="assignment.image.prompt.text")
    modality = serializers.CharField(source="assignment.image.prompt.modality")

    class Meta:
        model = Rating
        fields = [
            "id", "study", "reader", "image", "prompt", "modality", "value", "expert_level", "state", "revision",
            "cannot_judge", "defects", "comment", "is_simulated", "shown_at", "first_input_at", "answered_at",
            "active_ms", "display", "submitted_at",
        ]  # fmt: skip

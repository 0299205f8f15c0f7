"""JSON of generation jobs, images and releases."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from generation.comparisons import (
    STANDARD_NUM_IMAGES,
    STANDARD_PROMPTS,
    STANDARD_SEED,
    judgements,
)
from generation.models import (
    GeneratedImage,
    GenerationJob,
    Redrawing,
    Release,
    ReleaseActivation,
    ReleaseComparison,
)
from generation.parameters import PRECISIONS, RANGES, SCHEDULERS, Parameters
from generation.redrawings import outcome
from generation.services import MAX_IMAGES_PER_PROMPT, MAX_PROMPTS, MAX_SEED

_DEFAULTS = Parameters()


def _number(key: str, *, whole: bool = True, **options: Any) -> serializers.Field:
    smallest, largest = RANGES[key]
    kind = serializers.IntegerField if whole else serializers.FloatField
    default = getattr(_DEFAULTS, key)
    return kind(min_value=smallest, max_value=largest, default=default, allow_null=default is None, **options)


class ParametersSerializer(serializers.Serializer):
    num_inference_steps = _number("num_inference_steps")
    guidance_scale = _number("guidance_scale", whole=False)
    guidance_interval = serializers.ListField(
        child=serializers.FloatField(min_value=0, max_value=1),
        min_length=2,
        max_length=2,
        default=list(_DEFAULTS.guidance_interval),
        help_text="Guided part of the steps, start and end: 0 is pure noise, 1 the finished image.",
    )
    negative_prompt = serializers.CharField(default="", allow_blank=True, max_length=2000)
    scheduler = serializers.ChoiceField(SCHEDULERS, default=_DEFAULTS.scheduler)
    height = _number("height", help_text="Pixels; null: the model's own.")
    width = _number("width", help_text="Pixels; null: the model's own.")
    batch_size = _number("batch_size")
    precision = serializers.ChoiceField(PRECISIONS, default=_DEFAULTS.precision)
    quality_threshold = serializers.FloatField(
        min_value=0, max_value=1, required=False, help_text="Default: the release's, else 0.6."
    )
    max_attempts = _number("max_attempts")
    num_candidates = _number("num_candidates")
    use_gates = serializers.BooleanField(
        default=_DEFAULTS.use_gates, help_text="Let the release's gates stop hopeless candidates early."
    )


class NewJobSerializer(serializers.Serializer):
    prompts = serializers.ListField(
        child=serializers.CharField(max_length=2000),
        min_length=1,
        max_length=MAX_PROMPTS,
        help_text='Each "{kind}: {description}".',
    )
    mode = serializers.ChoiceField(GenerationJob.Mode.choices, default=GenerationJob.Mode.BASELINE)
    num_images = serializers.IntegerField(
        min_value=1, max_value=MAX_IMAGES_PER_PROMPT, default=3, help_text="Images of each prompt."
    )
    seed = serializers.IntegerField(
        min_value=0, max_value=MAX_SEED, allow_null=True, default=None, help_text="Null: a random one, recorded."
    )
    parameters = ParametersSerializer(required=False)
    certified = serializers.BooleanField(
        default=False,
        help_text="Serve under a certificate (rlhf): its threshold and sampling replace those in parameters.",
    )
    release = serializers.SlugRelatedField(
        "digest",
        queryset=Release.objects.all(),
        allow_null=True,
        default=None,
        help_text="Digest; null: the active release, unless pretrained_model is given.",
    )
    pretrained_model = serializers.CharField(
        default="", allow_blank=True, max_length=500, help_text="Folder on the server or hub id."
    )


class ReleaseSerializer(serializers.ModelSerializer):
    class Meta:
        model = Release
        fields = [
            "id",
            "digest",
            "name",
            "is_active",
            "is_simulated",
            "quality_threshold",
            "pipeline_sha256",
            "selector_sha256",
            "policy_sha256",
            "gates_sha256",
            "manifest",
            "created_at",
            "activated_at",
        ]
        read_only_fields = fields


class JobSerializer(serializers.ModelSerializer):
    prompts = serializers.SerializerMethodField()
    release = serializers.SlugRelatedField("digest", read_only=True)
    eta_seconds = serializers.IntegerField(read_only=True, allow_null=True)

    class Meta:
        model = GenerationJob
        fields = [
            "id",
            "state",
            "mode",
            "prompts",
            "num_images",
            "seed",
            "release",
            "pretrained_model",
            "parameters",
            "spent",
            "progress_done",
            "progress_total",
            "progress_unit",
            "eta_seconds",
            "error",
            "cancel_requested",
            "created_at",
            "started_at",
            "finished_at",
        ]
        read_only_fields = fields

    def get_prompts(self, job: GenerationJob) -> list[str]:
        return [one.prompt.text for one in job.job_prompts.all()]


class ImageSerializer(serializers.ModelSerializer):
    id = serializers.UUIDField(source="public_id", read_only=True)
    prompt = serializers.CharField(source="prompt.text", read_only=True)
    kind = serializers.CharField(source="prompt.kind", read_only=True)
    modality = serializers.CharField(source="prompt.modality", read_only=True)
    release = serializers.SlugRelatedField("digest", read_only=True)
    file_url = serializers.SerializerMethodField()

    class Meta:
        model = GeneratedImage
        fields = [
            "id",
            "source",
            "job",
            "position",
            "prompt",
            "kind",
            "modality",
            "release",
            "model_name",
            "weights_sha256",
            "is_phantom",
            "seed",
            "parameters",
            "sha256",
            "width",
            "height",
            "verdict",
            "selector_score",
            "policy_score",
            "attempt",
            "unet_evaluations",
            "created_at",
            "file_url",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.URLField())
    def get_file_url(self, image: GeneratedImage) -> str:
        url = f"/api/images/{image.public_id}/file/"
        request = self.context.get("request")
        return request.build_absolute_uri(url) if request else url


class ActivationSerializer(serializers.ModelSerializer):
    release = serializers.SlugRelatedField("digest", read_only=True)
    activated_by = serializers.SlugRelatedField("username", read_only=True, allow_null=True)

    class Meta:
        model = ReleaseActivation
        fields = ["id", "release", "activated_by", "activated_at", "is_rollback"]
        read_only_fields = fields


class RedrawingSerializer(serializers.ModelSerializer):
    """An image drawn again from its row."""

    image = serializers.SlugRelatedField("public_id", read_only=True)
    is_same = serializers.BooleanField(read_only=True, help_text="Whether every pixel is the recorded one.")
    outcome = serializers.SerializerMethodField(help_text="In words, with the likely cause; empty until it is known.")

    class Meta:
        model = Redrawing
        fields = [
            "id",
            "image",
            "state",
            "error",
            "is_same",
            "outcome",
            "sha256",
            "different_pixels",
            "largest_difference",
            "device",
            "created_at",
            "finished_at",
        ]
        read_only_fields = fields

    def get_outcome(self, row: Redrawing) -> str:
        return outcome(row)


# --- comparisons ---


class NewComparisonSerializer(serializers.Serializer):
    left = serializers.SlugRelatedField(
        "digest", queryset=Release.objects.all(), allow_null=True, help_text="Digest; null: medsyn-tiny."
    )
    right = serializers.SlugRelatedField(
        "digest", queryset=Release.objects.all(), allow_null=True, help_text="Digest; null: medsyn-tiny."
    )
    prompts = serializers.ListField(
        child=serializers.CharField(max_length=2000),
        min_length=1,
        max_length=MAX_PROMPTS,
        default=list(STANDARD_PROMPTS),
        help_text="Default: the standard set, three of each kind.",
    )
    num_images = serializers.IntegerField(
        min_value=1, max_value=100, default=STANDARD_NUM_IMAGES, help_text="Images of each prompt on either side."
    )
    seed = serializers.IntegerField(min_value=0, max_value=MAX_SEED, default=STANDARD_SEED)
    parameters = ParametersSerializer(required=False, help_text="The same for both sides.")


class SideFiguresSerializer(serializers.Serializer):
    number = serializers.IntegerField(help_text="Images judged.")
    selector = serializers.FloatField(help_text="Mean score, 0..1.")
    policy = serializers.FloatField(help_text="Mean score, 0..1.")
    passing = serializers.FloatField(help_text="Share of the images whose scores both reach the judge's threshold.")
    unet_evaluations = serializers.FloatField(allow_null=True, help_text="Mean per image.")


class PairedDifferenceSerializer(serializers.Serializer):
    """Right minus left over the same prompts and seeds."""

    name = serializers.CharField()
    mean = serializers.FloatField()
    low = serializers.FloatField(allow_null=True, help_text="End of the 95 % interval; null with a single prompt.")
    high = serializers.FloatField(allow_null=True)
    prompts = serializers.IntegerField(help_text="Prompts that the interval counts as independent.")


class JudgementSerializer(serializers.Serializer):
    """A comparison as the filter of one release sees it."""

    judge = serializers.CharField(source="judge.digest")
    threshold = serializers.FloatField(source="judge.quality_threshold")
    left = SideFiguresSerializer()
    right = SideFiguresSerializer()
    differences = PairedDifferenceSerializer(many=True)


class ComparisonSerializer(serializers.ModelSerializer):
    """A comparison; its sides are generation jobs, whose images lie below /api/images/?job=."""

    left_release = serializers.SlugRelatedField("digest", source="left.release", read_only=True, allow_null=True)
    right_release = serializers.SlugRelatedField("digest", source="right.release", read_only=True, allow_null=True)

    class Meta:
        model = ReleaseComparison
        fields = [
            "id",
            "state",
            "error",
            "left",
            "right",
            "left_release",
            "right_release",
            "progress_done",
            "progress_total",
            "created_at",
            "finished_at",
        ]
        read_only_fields = fields


class ComparisonDetailSerializer(ComparisonSerializer):
    """A comparison with what each filter says so far."""

    judgements = serializers.SerializerMethodField()

    class Meta(ComparisonSerializer.Meta):
        fields = [*ComparisonSerializer.Meta.fields, "judgements"]
        read_only_fields = fields

    @extend_schema_field(JudgementSerializer(many=True))
    def get_judgements(self, row: ReleaseComparison) -> list[dict[str, Any]]:
        return JudgementSerializer(judgements(row), many=True).data

"""What the API shows and takes of training runs."""

from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from ratings.models import Export, Study
from training.finetuning.arguments import DEFAULT_MODEL
from training.forms import FinetuneForm
from training.models import Checkpoint, TrainingRun
from training.queueing import Queue, Standing
from training.rlhf.config import ConfigError, RLHFConfig, from_dict
from training.run_status import progress_of


class RunProgressSerializer(serializers.Serializer):
    """How far a run has come."""

    state = serializers.ChoiceField(choices=TrainingRun.State.choices)
    done = serializers.IntegerField()
    total = serializers.IntegerField()
    unit = serializers.CharField(help_text="steps, or images and steps.")
    eta_seconds = serializers.IntegerField(allow_null=True)
    error = serializers.CharField(allow_blank=True)


class QueuePlaceSerializer(serializers.Serializer):
    """A queued run's place; null for one that does not wait."""

    place = serializers.IntegerField(help_text="1 is next.")
    length = serializers.IntegerField()
    at_work = serializers.SerializerMethodField(help_text="Runs that hold a device now: one at a time on each.")
    ahead = serializers.SerializerMethodField(help_text="Runs that are taken before it.")
    sentence = serializers.CharField()

    def get_at_work(self, place: Standing) -> list[int]:
        return [run.pk for run in place.at_work]

    def get_ahead(self, place: Standing) -> list[int]:
        return [run.pk for run in place.ahead]


class LogSerializer(serializers.Serializer):
    log = serializers.CharField(allow_blank=True, help_text="The last lines that the training process wrote.")


class EstimateSerializer(serializers.Serializer):
    """What a run would cost."""

    seconds = serializers.FloatField()
    bytes = serializers.IntegerField(help_text="On disk: checkpoints and final weights.")
    basis = serializers.CharField(help_text="Where the figures come from.")


class CheckpointSerializer(serializers.ModelSerializer):
    class Meta:
        model = Checkpoint
        fields = ["name", "step", "manifest_sha256", "created_at"]


class RunSerializer(serializers.ModelSerializer):
    """A training run as lists show it."""

    progress = serializers.SerializerMethodField()
    queue = serializers.SerializerMethodField()
    release = serializers.SlugRelatedField(slug_field="digest", read_only=True)

    class Meta:
        model = TrainingRun
        fields = [
            "id",
            "purpose",
            "name",
            "state",
            "generator",
            "export",
            "release",
            "is_simulated",
            "device",
            "progress",
            "queue",
            "created_at",
            "started_at",
            "finished_at",
        ]
        read_only_fields = fields

    @extend_schema_field(RunProgressSerializer)
    def get_progress(self, run: TrainingRun) -> dict[str, Any]:
        return progress_of(run)

    @extend_schema_field(QueuePlaceSerializer(allow_null=True))
    def get_queue(self, run: TrainingRun) -> dict[str, Any] | None:
        queue = self.context.get("queue") or Queue()  # of a list's rows, all the same one
        place = queue.standing(run)
        return place and QueuePlaceSerializer(place).data


class RunDetailSerializer(RunSerializer):
    """A training run with its configuration, checkpoints and final figures."""

    checkpoints = CheckpointSerializer(many=True, read_only=True)
    config = serializers.DictField(read_only=True)
    figures = serializers.DictField(read_only=True, help_text="Final figures; empty until the run has succeeded.")

    class Meta(RunSerializer.Meta):
        fields = [*RunSerializer.Meta.fields, "run_directory", "config", "checkpoints", "figures"]
        read_only_fields = fields


class NewRLHFRunSerializer(serializers.Serializer):
    """Which ratings and generator, and what differs from the defaults of config.yaml."""

    study = serializers.SlugRelatedField(
        slug_field="public_id", queryset=Study.objects.all(), required=False, help_text="Its ratings are frozen now."
    )
    export = serializers.PrimaryKeyRelatedField(queryset=Export.objects.all(), required=False)
    generator = serializers.CharField(
        default="", allow_blank=True, help_text="Pipeline folder; empty: the active release's, else medsyn-tiny."
    )
    name = serializers.CharField(max_length=100, default="", allow_blank=True)
    config = serializers.DictField(
        default=dict, help_text="Nested as in config.yaml; keys left out keep their default."
    )

    def validate_config(self, values: dict[str, Any]) -> RLHFConfig:
        try:
            return from_dict(values, source="config")
        except ConfigError as error:
            raise serializers.ValidationError(error.faults) from error

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if ("study" in given) == ("export" in given):
            raise serializers.ValidationError({"study": ["Give either a study or an export."]})
        return given


class NewFinetuningRunSerializer(serializers.Serializer):
    """Dataset and base model on the server, and the flags of training.finetuning.train that differ from default."""

    train_data_dir = serializers.CharField(help_text="Dataset CSV on the server: path,Text,modality.")
    pretrained_model_name_or_path = serializers.CharField(default=DEFAULT_MODEL)
    name = serializers.CharField(max_length=100, default="", allow_blank=True)
    flags = serializers.DictField(default=dict, help_text='{"max_train_steps": 500, "learning_rate": 1e-5, ...}')

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """Adds ``arguments``; the form of the page checks them, so both take and refuse the same."""
        paths = {name: given[name] for name in ("train_data_dir", "pretrained_model_name_or_path")}
        form = FinetuneForm.of_flags({**given["flags"], **paths})
        if not form.is_valid():
            faults = {
                "non_field_errors" if key == NON_FIELD_ERRORS else key: text for key, text in form.errors.items()
            }
            raise serializers.ValidationError(faults)
        return given | {"arguments": form.cleaned_data["arguments"]}


class CurveSerializer(serializers.Serializer):
    label = serializers.CharField()
    values = serializers.ListField(child=serializers.FloatField(allow_null=True))
    dash = serializers.BooleanField()


class ChartSerializer(serializers.Serializer):
    """One chart of the run's page, thinned to at most 1000 points."""

    name = serializers.CharField()
    x = serializers.ListField(child=serializers.FloatField())
    series = CurveSerializer(many=True)
    x_label = serializers.CharField()
    y_label = serializers.CharField()
    finished = serializers.BooleanField(help_text="No more values will come.")


class NewReleaseSerializer(serializers.Serializer):
    checkpoint = serializers.CharField(
        default="", allow_blank=True, help_text='"epoch_10"; empty: the one that the report chose.'
    )
    quality_threshold = serializers.FloatField(
        min_value=0, max_value=1, default=None, allow_null=True, help_text="null: the run's configuration's."
    )
    name = serializers.CharField(max_length=100, default="", allow_blank=True)
    activate = serializers.BooleanField(default=False, help_text="Serve it from now on.")


class PublishedReleaseSerializer(serializers.Serializer):
    digest = serializers.CharField()
    name = serializers.CharField()
    quality_threshold = serializers.FloatField()
    is_active = serializers.BooleanField()
    is_simulated = serializers.BooleanField()

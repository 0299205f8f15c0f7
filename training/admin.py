"""Administration of training: read only; runs are started, cancelled and released on the Training pages."""

from django.contrib import admin

from ratings.admin import ReadOnlyAdmin
from training.models import Checkpoint, ReadingBatch, TrainingRun


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "purpose", "state", "is_simulated", "release", "created_by", "created_at"]
    list_filter = ["purpose", "state", "is_simulated"]
    search_fields = ["name", "run_directory"]
    list_select_related = ["release", "created_by"]


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = ["id", "run", "name", "step", "manifest_sha256", "created_at"]
    list_select_related = ["run"]


@admin.register(ReadingBatch)
class ReadingBatchAdmin(ReadOnlyAdmin):
    list_display = ["id", "study", "release", "num_images", "random_share", "seed", "state", "created_at"]
    list_filter = ["state"]
    list_select_related = ["study", "release"]

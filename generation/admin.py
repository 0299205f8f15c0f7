"""Rows of generation in the administration: to look at, not to change; what made an image is a record."""

from django.contrib import admin
from django.http import HttpRequest

from generation.models import GeneratedImage, GenerationJob, Prompt, Release


class RecordAdmin(admin.ModelAdmin):
    """Read only: rows are made and changed by services."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj=None) -> bool:
        return False


@admin.register(Prompt)
class PromptAdmin(RecordAdmin):
    list_display = ["text", "kind", "created_at"]
    list_filter = ["kind"]
    search_fields = ["text"]


@admin.register(Release)
class ReleaseAdmin(RecordAdmin):
    list_display = ["name", "digest", "quality_threshold", "is_active", "is_simulated", "created_at"]


@admin.register(GenerationJob)
class GenerationJobAdmin(RecordAdmin):
    list_display = ["id", "state", "mode", "num_images", "seed", "release", "created_by", "created_at"]
    list_filter = ["state", "mode"]
    list_select_related = ["release", "created_by"]


@admin.register(GeneratedImage)
class GeneratedImageAdmin(RecordAdmin):
    list_display = ["public_id", "prompt", "verdict", "selector_score", "policy_score", "seed", "created_at"]
    list_filter = ["verdict", "source", "is_phantom"]
    list_select_related = ["prompt"]
    search_fields = ["prompt__text", "public_id"]

"""Administration of ratings. What is evidence is read only: ratings, their events, reading lists, exports."""

from django.contrib import admin

from ratings.hidden_grades import hidden_studies, told
from ratings.models import (
    Anchor,
    Assignment,
    Expertise,
    Export,
    GoldGrade,
    Membership,
    Protocol,
    Rating,
    RatingEvent,
    Study,
)


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that services write and nobody edits."""

    def has_add_permission(self, request, obj=None) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Study)
class StudyAdmin(admin.ModelAdmin):
    """Studies are made on the Studies page, which also makes the reading lists; here they are described or closed."""

    list_display = ["name", "is_open", "is_simulated", "protocol_version", "created_at"]
    list_filter = ["is_open", "is_simulated"]
    search_fields = ["name"]
    fields = ["name", "description", "is_open", "is_simulated", "protocol_version", "order_seed", "created_by"]
    readonly_fields = ["is_simulated", "protocol_version", "order_seed", "created_by"]

    def get_readonly_fields(self, request, obj=None) -> list[str]:
        """The name too, once the study was rated: exports name it."""
        return [*self.readonly_fields, "name"] if obj is not None and obj.has_begun else self.readonly_fields

    def has_add_permission(self, request) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Membership)
class MembershipAdmin(admin.ModelAdmin):
    """Readers join on the study's page, which makes their list; their level follows from what somebody verified
    (services.verify_level), so that its history is whole."""

    list_display = ["study", "reader", "expert_level", "is_simulated", "joined_at"]
    list_filter = ["expert_level", "is_simulated"]
    list_select_related = ["study", "reader"]
    readonly_fields = ["study", "reader", "expert_level", "is_simulated", "joined_at"]

    def has_add_permission(self, request) -> bool:
        return False

    def has_delete_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Assignment)
class AssignmentAdmin(ReadOnlyAdmin):
    list_display = ["public_id", "study", "reader", "position", "block", "kind", "occurrence"]
    list_filter = ["kind"]
    list_select_related = ["study", "reader"]


def _told_ratings(request, ratings):
    """Not those that are kept from the person, who can ask for them on the study's page."""
    return told(ratings, request, hidden_studies(request, Study.objects.all()))


@admin.register(Rating)
class RatingAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "assignment",
        "value",
        "cannot_judge",
        "state",
        "revision",
        "expert_level",
        "is_simulated",
        "submitted_at",
    ]
    list_filter = ["state", "value", "expert_level", "is_simulated"]
    list_select_related = ["assignment"]

    def get_queryset(self, request):
        return _told_ratings(request, super().get_queryset(request))


@admin.register(RatingEvent)
class RatingEventAdmin(ReadOnlyAdmin):
    list_display = ["id", "rating", "revision", "action", "old_value", "value", "state", "actor", "created_at"]
    list_filter = ["action"]
    list_select_related = ["actor", "rating"]

    def get_queryset(self, request):
        return super().get_queryset(request).filter(rating__in=_told_ratings(request, Rating.objects.all()))


@admin.register(Export)
class ExportAdmin(ReadOnlyAdmin):
    list_display = ["id", "study", "row_count", "has_simulated", "sha256", "created_by", "created_at"]
    list_select_related = ["study", "created_by"]


@admin.register(Protocol)
class ProtocolAdmin(ReadOnlyAdmin):
    list_display = ["study", "version", "overlap_target", "repeat_share", "created_by", "created_at"]
    list_select_related = ["study", "created_by"]


@admin.register(Anchor)
class AnchorAdmin(ReadOnlyAdmin):
    list_display = ["protocol", "grade", "image"]
    list_select_related = ["protocol", "image"]


@admin.register(GoldGrade)
class GoldGradeAdmin(ReadOnlyAdmin):
    list_display = ["image", "grade", "set_by", "created_at"]
    list_filter = ["grade"]
    list_select_related = ["image", "set_by"]


@admin.register(Expertise)
class ExpertiseAdmin(ReadOnlyAdmin):
    list_display = ["person", "expert_level", "specialty", "verified_by", "verified_at"]
    list_filter = ["expert_level"]
    list_select_related = ["person", "verified_by"]

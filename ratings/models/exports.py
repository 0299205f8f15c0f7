"""Files that were written of the ratings."""

from pathlib import Path
from typing import Self

from django.conf import settings
from django.db import models

from medsyn.roles import is_admin
from ratings.models.studies import Study

# Of every content, the order in which files are shown: a database may keep the keys of a JSON object in its own.
_SHOWN_ORDER = ("ratings", "images", "tidy", "splits", "dictionary")


class ExportQuerySet(models.QuerySet):
    def managed_by(self, user) -> Self:
        """Exports that the person may see: all for administrators, those of their studies for study owners."""
        return self.all() if is_admin(user) else self.filter(study__in=Study.objects.managed_by(user))


class Export(models.Model):
    """Files written of the ratings as they stood after one event: what they held, what their bytes hash to."""

    class Content(models.TextChoices):
        RATINGS = "ratings", "Ratings: five columns, tidy table, data dictionary"
        IMAGES = "images", "Images: what all readers together say of each"

    content = models.CharField(max_length=10, choices=Content, default=Content.RATINGS)
    study = models.ForeignKey(Study, null=True, blank=True, on_delete=models.PROTECT, related_name="exports")
    file = models.CharField(max_length=500)  # below the artifact root, or an absolute path that was asked for
    sha256 = models.CharField(max_length=64)  # of that file
    files = models.JSONField(default=dict)  # by name: {"file", "sha256", "row_count"} of all that were written
    row_count = models.PositiveIntegerField()
    filters = models.JSONField(default=dict)
    last_event = models.PositiveBigIntegerField(null=True)  # key of the newest RatingEvent that it knew of
    code_version = models.CharField(max_length=100, blank=True)
    rerun_of = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="reruns")
    has_simulated = models.BooleanField(default=False)  # some of its ratings came from simulated experts
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Export {self.pk}: {self.row_count} {'ratings' if self.content == self.Content.RATINGS else 'images'}"

    @property
    def path(self) -> Path:
        """The first of its files."""
        return settings.ARTIFACT_ROOT / self.file

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of its files, its own file first."""
        return tuple(name for name in _SHOWN_ORDER if name in self.files)

    def path_of(self, name: str) -> Path:
        """One of its files by name; raises FileNotFoundError for a name that it does not have."""
        if name not in self.files:
            raise FileNotFoundError(
                f"Export {self.pk} has no file {name!r}; it has {', '.join(self.file_names) or 'none'}."
            )
        return settings.ARTIFACT_ROOT / self.files[name]["file"]

    @property
    def differing_files(self) -> tuple[str, ...]:
        """Names of the files whose bytes are not those of the export that this one repeats."""
        if self.rerun_of is None:
            return ()
        before = self.rerun_of.files
        names = self.file_names
        return tuple(name for name in names if self.files[name]["sha256"] != before.get(name, {}).get("sha256"))

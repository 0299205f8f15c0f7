"""What a certificate rests on is not deleted any more: more triggers. And what certificates and plans from before they
named it were computed in is read from their calibration images; where these disagree or do not say it, the certificate
is revoked (docs/decisions/0012)."""

from django.db import migrations
from django.utils import timezone

from ratings import calibration_guards

_REVOCATION = (
    "Its calibration images do not say, or not all the same, in which precision and on which kind of device they were "
    "computed, so nobody can tell what it speaks of. Rate a new draw."
)


def _arithmetic(images):
    """Precision and kind of device that the rows of all images name; None where there is not one pair of them."""
    found = set(images.order_by().values_list("image__parameters__precision", "image__parameters__device"))
    if len(found) != 1 or None in next(iter(found)):
        return None
    return dict(zip(("precision", "device"), found.pop(), strict=True))


def settle_arithmetic(apps, schema_editor):
    """Complete plans, for their certificates to come; note beside each certificate what its images say, or end it."""
    drawn = apps.get_model("ratings", "CalibrationImage").objects
    for plan in apps.get_model("ratings", "CalibrationPlan").objects.filter(purpose="certify"):
        for kind, pipeline in plan.pipelines.items():
            pipeline |= _arithmetic(drawn.filter(plan=plan, image__prompt__kind=kind)) or {}
        plan.save(update_fields=["pipelines"])
    for row in apps.get_model("generation", "Certificate").objects.order_by("pk"):
        images = drawn.filter(plan__public_id=row.calibration_set, image__prompt__kind=row.kind)
        found = _arithmetic(images)
        if found is not None:
            row.manifest["arithmetic"] = found
        elif row.status == "issued" and row.revoked_at is None:
            row.revoked_at, row.revocation = timezone.now(), _REVOCATION
        row.save(update_fields=["manifest", "revoked_at", "revocation"])


def _install(apps, schema_editor):
    calibration_guards.install(schema_editor.connection)


class Migration(migrations.Migration):

    dependencies = [
        ('ratings', '0008_calibration_guards'),
        ('generation', '0007_copies_of_training_images'),
    ]

    operations = [
        migrations.RunPython(settle_arithmetic, migrations.RunPython.noop),
        migrations.RunPython(_install, migrations.RunPython.noop),
    ]

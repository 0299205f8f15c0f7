"""A revocation is final, whoever writes: one trigger more (docs/decisions/0012)."""

from django.db import migrations

from ratings import calibration_guards


def _install(apps, schema_editor):
    calibration_guards.install(schema_editor.connection)


class Migration(migrations.Migration):

    dependencies = [
        ('ratings', '0009_kept_calibrations'),
    ]

    operations = [
        migrations.RunPython(_install, migrations.RunPython.noop),
    ]

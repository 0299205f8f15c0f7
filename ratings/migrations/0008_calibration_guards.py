"""The database keeps calibration apart from learning: triggers, as no constraint looks at two tables."""

from django.db import migrations

from ratings import calibration_guards


def _install(apps, schema_editor):
    calibration_guards.install(schema_editor.connection)


def _remove(apps, schema_editor):
    calibration_guards.remove(schema_editor.connection)


class Migration(migrations.Migration):

    dependencies = [
        ('ratings', '0007_calibration_plans'),
    ]

    operations = [
        migrations.RunPython(_install, _remove),
    ]

from pathlib import PurePosixPath

from django.db import migrations


def name_files(apps, schema_editor):
    """Exports from before their files were recorded one by one can still be downloaded: only the first file's sha256
    is known, and they cannot be repeated (last_event is null)."""
    export_model = apps.get_model("ratings", "Export")
    for export in export_model.objects.filter(files={}).iterator():
        first = PurePosixPath(export.file)
        prefix = "" if first.name == "ratings.csv" else f"{first.stem}_"
        others = {"tidy": f"{first.stem}_tidy.csv", "dictionary": f"{prefix}data_dictionary.csv"}
        export.files = {"ratings": {"file": export.file, "sha256": export.sha256, "row_count": export.row_count}}
        for name, text in others.items():
            export.files[name] = {"file": str(first.with_name(text)), "sha256": "", "row_count": None}
        export.save(update_fields=["files"])


class Migration(migrations.Migration):

    dependencies = [
        ('ratings', '0004_pool_index'),
    ]

    operations = [
        migrations.RunPython(name_files, migrations.RunPython.noop),
    ]

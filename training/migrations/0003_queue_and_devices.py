import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0002_rename_report_figures")]

    operations = [
        migrations.AddField("trainingrun", "device", models.CharField(blank=True, editable=False, max_length=200)),
        migrations.AddField(
            "trainingrun", "queued_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)
        ),
        migrations.AddConstraint(
            "trainingrun",
            models.UniqueConstraint(
                fields=["device"],
                condition=models.Q(("state", "running"), ~models.Q(device="")),
                name="one_run_per_device",
            ),
        ),
    ]

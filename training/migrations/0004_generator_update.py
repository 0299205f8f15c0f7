from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0003_queue_and_devices")]

    operations = [
        migrations.AlterField(
            "trainingrun",
            "purpose",
            models.CharField(
                choices=[
                    ("rlhf", "Selector and policy"),
                    ("finetune", "Fine-tune the generator"),
                    ("update", "Update the generator"),
                ],
                max_length=10,
            ),
        ),
    ]

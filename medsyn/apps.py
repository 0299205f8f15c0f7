from django.apps import AppConfig


class MedsynConfig(AppConfig):
    name = "medsyn"

    def ready(self) -> None:
        from medsyn import checks  # noqa: F401  registers the system checks

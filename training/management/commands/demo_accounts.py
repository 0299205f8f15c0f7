"""An administrator and a clinician for the demonstration, with random passwords printed once."""

import secrets

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

_ROLES = {"admin": {"is_staff": True, "is_superuser": True}, "clinician": {}}


class Command(BaseCommand):
    help = "Make the accounts admin and clinician; their passwords are random and printed this once."

    @transaction.atomic
    def handle(self, **_):
        people = get_user_model()
        for username, rights in _ROLES.items():
            if people.objects.filter(username=username).exists():
                self.stdout.write(f"{username}: exists (manage.py changepassword {username} sets a new password)")
                continue
            password = secrets.token_urlsafe(12)
            people.objects.create_user(username=username, password=password, **rights)
            self.stdout.write(f"{username}: password {password} (not stored anywhere in readable form)")

"""An administrator and a clinician for the demonstration, with random passwords printed once."""

import secrets

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.management.base import BaseCommand
from django.db import transaction

from medsyn.roles import CLINICIANS
from ratings.services import verify_level

_ROLES = {"admin": {"is_staff": True, "is_superuser": True}, "clinician": {}}
_LEVEL = 2  # the clinician's: a specialist


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
            person = people.objects.create_user(username=username, password=password, **rights)
            self.stdout.write(f"{username}: password {password} (not stored anywhere in readable form)")
            if not person.is_staff:
                person.groups.add(Group.objects.get_or_create(name=CLINICIANS)[0])
                admin = people.objects.filter(username="admin").first()
                note = "Demonstration: nobody looked at anything."
                verify_level(person=person, expert_level=_LEVEL, verified_by=admin, note=note)

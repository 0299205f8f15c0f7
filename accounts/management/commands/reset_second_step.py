"""For the last administrator who lost telephone and recovery codes: whoever runs the server lets them in again."""

from django.core.management.base import BaseCommand, CommandError

from accounts import services
from accounts.models import Person


class Command(BaseCommand):
    help = "Forget somebody's second step (authenticator app and recovery codes) and sign them out everywhere."

    def add_arguments(self, parser):
        parser.add_argument("name", help="user name or e-mail address")
        parser.add_argument("--reason", required=True, help="stays on record with the account")

    def handle(self, *, name: str, reason: str, **_):
        person = Person.objects.named(name).first()
        if person is None:
            raise CommandError(f"Nobody signs in as {name!r}.")
        try:
            services.reset_second_factor(person=person, by=None, reason=reason)
        except services.AccountError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"The second step of {person} is reset. They set up a new one when they next sign in.")

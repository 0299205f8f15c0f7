"""Pages about a person rather than about an app's things."""

from django.contrib.auth.views import PasswordChangeView
from django.contrib.messages.views import SuccessMessageMixin
from django.urls import reverse_lazy


class PasswordChange(SuccessMessageMixin, PasswordChangeView):
    """A person's own password; afterwards they are where they began."""

    success_url = reverse_lazy("home")
    success_message = "Your password is changed."

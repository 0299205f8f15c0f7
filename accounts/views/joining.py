"""Links that let somebody in: an invitation, a new password. Nobody has signed in yet."""

import threading

from allauth.account.adapter import get_adapter
from allauth.core import ratelimit
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.forms import SetPasswordForm
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views import View

from accounts import services
from accounts.forms import ForgottenForm, JoinForm
from accounts.models import PASSWORD_LINK_DAYS, Invitation, Person


@method_decorator(login_not_required, name="dispatch")
class LinkView(View):
    """A page behind a token. Unknown, used, withdrawn and old links all get the same reply."""

    kind: Invitation.Kind
    template: str

    def dispatch(self, request: HttpRequest, token: str) -> HttpResponse:
        limited = ratelimit.consume_or_429(request, action="reset_password_from_key")
        if limited:
            return limited
        self.token = token
        self.invitation = Invitation.objects.usable().with_token(token).filter(kind=self.kind).first()
        if self.invitation is None:
            return self._dead()
        response = super().dispatch(request)
        response["Cache-Control"] = "no-store"
        return response

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._page(self.form())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = self.form(request.POST)
        if request.user.is_authenticated:  # somebody else's browser: the page says so
            return self._page(form, status=422)
        if form.is_valid():
            try:
                return self.done(form)
            except services.DeadLink:
                return self._dead()
            except services.AccountError as error:
                form.add_error(None, str(error))
        return self._page(form, status=422)

    def form(self, data=None):
        raise NotImplementedError

    def done(self, form) -> HttpResponse:
        raise NotImplementedError

    def _page(self, form, status: int = 200) -> HttpResponse:
        context = {"form": form, "invitation": self.invitation}
        return render(self.request, self.template, context, status=status)

    def _dead(self) -> HttpResponse:
        return render(self.request, "accounts/dead_link.html", status=404)


class Join(LinkView):
    """Accept an invitation: choose a user name and a password, and be signed in."""

    kind = Invitation.Kind.JOIN
    template = "accounts/join.html"

    def form(self, data=None) -> JoinForm:
        return JoinForm(data, invitation=self.invitation)

    def done(self, form: JoinForm) -> HttpResponse:
        chosen = form.cleaned_data
        person = services.accept_invitation(
            token=self.token, username=chosen["username"], password=chosen["password1"]
        )
        get_adapter(self.request).login(self.request, person)
        if person.is_staff:
            return redirect("mfa_activate_totp")
        messages.success(self.request, f"Welcome, {person.get_short_name() or person.get_username()}.")
        return redirect("home")


class NewPassword(LinkView):
    """Choose a new password. Signing in comes after, with the second step where there is one."""

    kind = Invitation.Kind.PASSWORD
    template = "accounts/new_password.html"

    def form(self, data=None) -> SetPasswordForm:
        return SetPasswordForm(self.invitation.person, data)

    def done(self, form: SetPasswordForm) -> HttpResponse:
        services.choose_password(token=self.token, password=form.cleaned_data["new_password1"])
        messages.success(self.request, "Your password is set. Sign in with it.")
        return redirect("login")


@method_decorator(login_not_required, name="dispatch")
class Forgotten(View):
    """Ask for a link by mail. The reply is the same whether the address has an account or not."""

    def dispatch(self, request: HttpRequest) -> HttpResponse:
        if not settings.MAIL_IS_CONFIGURED:
            raise Http404("Without mail an administrator makes the link.")
        return super().dispatch(request)

    def get(self, request: HttpRequest) -> HttpResponse:
        context = {"form": ForgottenForm(), "is_sent": "sent" in request.GET, "days": PASSWORD_LINK_DAYS}
        return render(request, "accounts/forgotten.html", context)

    def post(self, request: HttpRequest) -> HttpResponse:
        form = ForgottenForm(request.POST)
        if not form.is_valid():
            return render(request, "accounts/forgotten.html", {"form": form}, status=422)
        email = form.cleaned_data["email"]
        limited = ratelimit.consume_or_429(request, action="reset_password", key=email.casefold())
        if limited:
            return limited
        for person in Person.objects.signing_in().filter(is_active=True, email__iexact=email):
            invitation, token = services.offer_new_password(person=person)
            link = request.build_absolute_uri(reverse("accounts:new-password", args=[token]))
            # Behind the reply: how long a mail server takes would tell that there is an account.
            threading.Thread(target=services.send_link, kwargs={"invitation": invitation, "link": link}).start()
        return redirect(f"{reverse('accounts:forgotten')}?sent")

"""Signing in, the second step, one's own password: allauth's views in our look."""

from allauth.account.internal.stagekit import clear_login
from allauth.account.views import AccountInactiveView, LoginView, ReauthenticateView
from allauth.core import ratelimit
from allauth.mfa.base.views import AuthenticateView, IndexView
from allauth.mfa.base.views import ReauthenticateView as ReauthenticateByCodeView
from allauth.mfa.recovery_codes.views import GenerateRecoveryCodesView, ViewRecoveryCodesView
from allauth.mfa.totp.views import ActivateTOTPView, DeactivateTOTPView
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import PasswordChangeView
from django.contrib.messages.views import SuccessMessageMixin
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views import View

from accounts import second_factor, services
from accounts.forms import CodeAgainForm, CodeForm, SignInForm

_LIMIT_CODES = ("too_many_login_attempts", "rate_limited")


def _refused(response: HttpResponse, form: Form) -> HttpResponse:
    """The page of a form that was not accepted: 429 where attempts were too many, 422 otherwise."""
    is_limited = any(form.has_error(field, code) for field in form.errors for code in _LIMIT_CODES)
    response.status_code = 429 if is_limited else 422
    if is_limited:
        response["Retry-After"] = str(settings.LOGIN_WAIT_SECONDS)
    return response


class SignIn(LoginView):
    """User name or e-mail address, and password."""

    form_class = SignInForm
    template_name = "accounts/login.html"

    def get_context_data(self, **kwargs) -> dict:
        return super().get_context_data(**kwargs) | {"mail_is_configured": settings.MAIL_IS_CONFIGURED}

    def _redirect_to_pending_stage(self, request: HttpRequest, stage) -> HttpResponse | None:
        """To the second step; whose was reset while they were asked for a code signs in anew.

        allauth sends them from here to there and back without end.
        """
        if not is_mfa_enabled(stage.login.user):
            clear_login(request)
            return None
        return super()._redirect_to_pending_stage(request, stage)

    def form_invalid(self, form: SignInForm) -> HttpResponse:
        if form.non_field_errors():
            form.ask_for_password_again()
        return _refused(super().form_invalid(form), form)


class SecondStep(AuthenticateView):
    """The code, after the password."""

    form_class = CodeForm
    template_name = "accounts/second_step.html"

    def form_valid(self, form: Form) -> HttpResponse:
        if not second_factor.password_still_holds(self.request, self.stage.login.user):
            clear_login(self.request)  # closed, or given another password, while the code was asked for
            return redirect("login")
        response = super().form_valid(form)
        if self.request.user.is_authenticated:
            second_factor.note_passed(self.request)
        return response

    def form_invalid(self, form: Form) -> HttpResponse:
        return _refused(super().form_invalid(form), form)


class ClosedAccount(AccountInactiveView):
    """Seen by whoever knows the password of an account that an administrator closed."""

    template_name = "accounts/closed.html"


class ConfirmByPassword(ReauthenticateView):
    """The password again, before something that guards the account is changed."""

    template_name = "accounts/confirm.html"

    def form_invalid(self, form: Form) -> HttpResponse:
        return _refused(super().form_invalid(form), form)


class ConfirmByCode(ReauthenticateByCodeView):
    """The code again; also where a session began before the second step was set up."""

    form_class = CodeAgainForm
    template_name = "accounts/confirm.html"

    def form_valid(self, form: Form) -> HttpResponse:
        second_factor.note_passed(self.request)
        return super().form_valid(form)

    def form_invalid(self, form: Form) -> HttpResponse:
        return _refused(super().form_invalid(form), form)


class SecondStepState(IndexView):
    """One's own second step: is it on?"""

    template_name = "accounts/second_step_state.html"

    def get_context_data(self, **kwargs) -> dict:
        is_needed = settings.REQUIRE_MFA and self.request.user.is_staff
        return super().get_context_data(**kwargs) | {"is_needed": is_needed}


class SetUpSecondStep(ActivateTOTPView):
    """QR code, key, and the first code."""

    template_name = "accounts/second_step_setup.html"

    def form_valid(self, form: Form) -> HttpResponse:
        response = super().form_valid(form)
        second_factor.note_passed(self.request)
        return response

    def form_invalid(self, form: Form) -> HttpResponse:
        return _refused(super().form_invalid(form), form)

    def get_context_data(self, **kwargs) -> dict:
        return super().get_context_data(**kwargs) | {"is_needed": second_factor.is_missing(self.request)}


class EndSecondStep(DeactivateTOTPView):
    """Go back to the password alone."""

    template_name = "accounts/second_step_end.html"

    def form_valid(self, form: Form) -> HttpResponse:
        response = super().form_valid(form)
        second_factor.forget(self.request)
        messages.success(self.request, "The second step is off: your password alone signs you in.")
        return response


class RecoveryCodes(ViewRecoveryCodesView):
    """The codes for a lost telephone: shown once."""

    template_name = "accounts/recovery_codes.html"

    def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        response = super().get(request, *args, **kwargs)
        response["Cache-Control"] = "no-store"
        return response


class NewRecoveryCodes(GenerateRecoveryCodesView):
    """Replaces the recovery codes."""

    template_name = "accounts/recovery_codes_new.html"


class PasswordChange(SuccessMessageMixin, PasswordChangeView):
    """A person's own password; every other session of theirs ends, and they are where they began."""

    success_url = reverse_lazy("home")
    success_message = "Your password is changed. You are signed out everywhere else."

    def post(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        limited = ratelimit.consume_or_429(request, action="change_password", user=request.user)
        return limited or super().post(request, *args, **kwargs)

    def form_valid(self, form: Form) -> HttpResponse:
        services.withdraw_password_links(person=self.request.user)
        return super().form_valid(form)


@method_decorator(login_not_required, name="dispatch")
class AdminDoor(View):
    """Django's administration has no sign-in of its own: there is one door, with its limits and its second step."""

    def dispatch(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        if request.user.is_authenticated and not request.user.is_staff:
            raise Http404
        wanted = request.GET.get("next", "")
        target = wanted if wanted.startswith("/admin/") else "/admin/"
        if request.user.is_authenticated:
            return redirect(target)
        return redirect(f"{reverse_lazy('login')}?{urlencode({'next': target})}")

"""People, signing in and links. Of allauth only what is named here can be reached: nobody signs up."""

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LogoutView
from django.urls import include, path
from django.views.generic import RedirectView

from accounts.views import joining, people, sign_in

_pages = [
    path("people/", people.PersonList.as_view(), name="people"),
    path("people/invite/", people.Invite.as_view(), name="invite"),
    path("people/invitations/<int:pk>/link/", people.InvitationLink.as_view(), name="invitation-link"),
    path("people/invitations/<int:pk>/withdraw/", people.InvitationRevoke.as_view(), name="invitation-revoke"),
    path("people/<int:pk>/", people.PersonDetail.as_view(), name="person"),
    path("people/<int:pk>/role/", people.PersonRole.as_view(), name="person-role"),
    path("people/<int:pk>/level/", people.PersonLevel.as_view(), name="person-level"),
    path("people/<int:pk>/state/", people.PersonState.as_view(), name="person-state"),
    path("people/<int:pk>/second-step/", people.PersonSecondFactor.as_view(), name="person-second-factor"),
    path("people/<int:pk>/password/", people.PersonPasswordLink.as_view(), name="person-password"),
    path("join/<str:token>/", joining.Join.as_view(), name="join"),
    path("password/new/<str:token>/", joining.NewPassword.as_view(), name="new-password"),
    path("password/forgotten/", joining.Forgotten.as_view(), name="forgotten"),
]
# The names that allauth and Django look up.
_signing_in = [
    path("login/", sign_in.SignIn.as_view(), name="login"),
    path("login/", sign_in.SignIn.as_view(), name="account_login"),
    path("login/second-step/", sign_in.SecondStep.as_view(), name="mfa_authenticate"),
    path("login/closed/", sign_in.ClosedAccount.as_view(), name="account_inactive"),
    path("login/confirm/", sign_in.ConfirmByPassword.as_view(), name="account_reauthenticate"),
    path("login/confirm/code/", sign_in.ConfirmByCode.as_view(), name="mfa_reauthenticate"),
    # Also for somebody halfway through signing in, who wants to begin again.
    path("logout/", login_not_required(LogoutView.as_view()), name="logout"),
    path("password/", sign_in.PasswordChange.as_view(), name="password_change"),
    path("second-step/", sign_in.SecondStepState.as_view(), name="mfa_index"),
    path("second-step/set-up/", sign_in.SetUpSecondStep.as_view(), name="mfa_activate_totp"),
    path("second-step/end/", sign_in.EndSecondStep.as_view(), name="mfa_deactivate_totp"),
    path("second-step/codes/", sign_in.RecoveryCodes.as_view(), name="mfa_view_recovery_codes"),
    path("second-step/codes/new/", sign_in.NewRecoveryCodes.as_view(), name="mfa_generate_recovery_codes"),
    path("admin/login/", sign_in.AdminDoor.as_view(), name="admin_door"),
    path("admin/password_change/", RedirectView.as_view(pattern_name="password_change"), name="admin_password"),
]
urlpatterns = [*_signing_in, path("", include((_pages, "accounts")))]

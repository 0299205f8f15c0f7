"""Forms of people: the filter, an invitation, a level, a reason, and what somebody fills in who was invited."""

from allauth.account.forms import LoginForm
from allauth.mfa import app_settings as second_step_settings
from allauth.mfa.adapter import get_adapter as get_second_step_adapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from django import forms
from django.contrib.auth import get_user_model
from django.contrib.auth.forms import SetPasswordMixin, UsernameField
from django.core.cache import cache
from django.db.models import Q, QuerySet

from accounts.models import Person, Role
from medsyn.roles import STUDY_OWNERS
from ratings.forms import LEVEL_CHOICES
from ratings.models import Study

_ALL = ("", "All")


class SignInForm(LoginForm):
    """allauth's, with one name for the field of the page, and words instead of placeholders."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["login"].label = "Username or e-mail address"
        self.fields["login"].widget.attrs |= {"autocomplete": "username", "autocapitalize": "none", "autofocus": True}
        for field in self.fields.values():
            field.widget.attrs.pop("placeholder", None)

    def ask_for_password_again(self) -> None:
        """After a refusal: the name is kept, the focus is on the password, and the reason is read out with it."""
        self.fields["login"].widget.attrs.pop("autofocus", None)
        self.fields["password"].widget.attrs |= {"autofocus": True, "aria-describedby": "form-errors"}

    def add_prefix(self, field_name: str) -> str:
        """What is sent is called username, as password managers and scripts know it."""
        return super().add_prefix("username" if field_name == "login" else field_name)


class _CodeOnce:
    """A code counts once in all the time in which it would be right (RFC 6238, section 5.2).

    allauth remembers it for one period; with MFA_TOTP_TOLERANCE it is right for several.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["code"].widget.attrs["autofocus"] = True

    def clean_code(self) -> str:
        digits = "".join(character for character in self.cleaned_data["code"] if character.isdecimal())
        mark = f"second-step-code-used:{self.user.pk}:{digits[:20]}"
        if cache.get(mark):
            raise get_second_step_adapter().validation_error("incorrect_code")
        code = super().clean_code()
        num_periods = 2 * second_step_settings.TOTP_TOLERANCE + 1
        cache.set(mark, True, timeout=num_periods * second_step_settings.TOTP_PERIOD)
        return code


class CodeForm(_CodeOnce, AuthenticateForm):
    """The code, after the password."""


class CodeAgainForm(_CodeOnce, ReauthenticateForm):
    """The code, from somebody who is signed in."""


class PersonFilter(forms.Form):
    """What to show of the people; empty fields do not restrict."""

    q = forms.CharField(label="Name or e-mail", required=False)
    role = forms.ChoiceField(choices=[_ALL, *Role.choices], required=False)
    level = forms.ChoiceField(choices=[_ALL, *LEVEL_CHOICES, ("none", "Not verified")], required=False)
    state = forms.ChoiceField(
        label="Account",
        choices=[("", "Open or closed"), ("open", "Open"), ("closed", "Closed"), ("none", "Without sign-in")],
        required=False,
    )
    second_factor = forms.ChoiceField(
        label="Second step", choices=[_ALL, ("yes", "Set up"), ("no", "Not set up")], required=False
    )

    def apply(self, people: QuerySet) -> QuerySet:
        """``people`` (Person.objects.in_full()) restricted; call after is_valid()."""
        chosen = self.cleaned_data
        if chosen["state"] == "none":
            people = people.filter(password__startswith="!")
        else:
            people = people.signing_in()
        if chosen["state"] in ("open", "closed"):
            people = people.filter(is_active=chosen["state"] == "open")
        if chosen["q"]:
            fields = ("username", "first_name", "last_name", "email")
            wanted = [Q(**{f"{field}__icontains": chosen["q"]}) for field in fields]
            people = people.filter(wanted[0] | wanted[1] | wanted[2] | wanted[3])
        if chosen["role"]:
            people = people.filter(role=chosen["role"])
        if chosen["level"]:
            people = people.filter(level=None if chosen["level"] == "none" else int(chosen["level"]))
        if chosen["second_factor"]:
            people = people.filter(has_second_factor=chosen["second_factor"] == "yes")
        return people


def _verifiers() -> QuerySet:
    """Who may vouch for a level: administrators and study owners."""
    may = Q(is_staff=True) | Q(groups__name=STUDY_OWNERS)
    return Person.objects.filter(may, is_active=True).distinct().order_by("username")


class _VerifiedForm(forms.Form):
    """A level of expertise, and on whose word."""

    expert_level = forms.TypedChoiceField(
        label="Level", choices=LEVEL_CHOICES, coerce=int, help_text="Ratings keep the level held when they are given."
    )
    specialty = forms.CharField(max_length=200, required=False, help_text="For example: thoracic radiology.")
    verified_by = forms.ModelChoiceField(Person.objects.none(), help_text="Who looked at what the level rests on.")
    level_note = forms.CharField(
        label="What it rests on",
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Board certificate, years of practice, a test: what a reviewer would ask for.",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["verified_by"].queryset = _verifiers()


class LevelForm(_VerifiedForm):
    """A new level for somebody."""


class InviteForm(_VerifiedForm):
    """Whom to let in, as what."""

    email = forms.EmailField(label="E-mail address")
    first_name = forms.CharField(max_length=150, required=False)
    last_name = forms.CharField(max_length=150, required=False)
    role = forms.ChoiceField(choices=Role.choices, widget=forms.RadioSelect, initial=Role.CLINICIAN)
    studies = forms.ModelMultipleChoiceField(
        Study.objects.none(),
        required=False,
        label="Studies to read",
        widget=forms.CheckboxSelectMultiple,
        help_text="Joined as soon as the invitation is accepted. Needs a level.",
    )
    field_order = ["email", "first_name", "last_name", "role"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["expert_level"] = forms.TypedChoiceField(
            label="Level",
            choices=[("", "Not verified yet"), *LEVEL_CHOICES],
            coerce=int,
            empty_value=None,
            required=False,
        )
        self.fields["verified_by"].required = False
        self.fields["studies"].queryset = Study.objects.filter(is_open=True).order_by("name")
        self.order_fields(self.field_order)

    def who_fields(self) -> list:
        return [self[name] for name in ("email", "first_name", "last_name", "role")]

    def level_fields(self) -> list:
        return [self[name] for name in ("expert_level", "specialty", "verified_by", "level_note", "studies")]


class RoleForm(forms.Form):
    role = forms.ChoiceField(choices=Role.choices, widget=forms.RadioSelect)


class ReasonForm(forms.Form):
    reason = forms.CharField(max_length=500, widget=forms.Textarea(attrs={"rows": 2}))


class JoinForm(SetPasswordMixin, forms.Form):
    """The user name and password of somebody who was invited."""

    username = UsernameField(
        max_length=150,
        validators=[get_user_model().username_validator],
        label="Username",
        help_text="Letters, digits and @ . + - _ only. Other readers never see it.",
    )
    password1, password2 = SetPasswordMixin.create_password_fields()

    def __init__(self, *args, invitation, **kwargs):
        super().__init__(*args, **kwargs)
        self._invitation = invitation
        self.fields["username"].widget.attrs["autofocus"] = True

    def clean_username(self) -> str:
        username = self.cleaned_data["username"]
        if Person.objects.named(username).exists():
            raise forms.ValidationError("This user name is taken. Choose another one.")
        return username

    def clean(self) -> dict:
        self.validate_passwords("password1", "password2")
        told = {name: getattr(self._invitation, name) for name in ("email", "first_name", "last_name")}
        user = get_user_model()(username=self.cleaned_data.get("username", ""), **told)
        self.validate_password_for_user(user, "password2")
        return super().clean()


class ForgottenForm(forms.Form):
    email = forms.EmailField(label="E-mail address")

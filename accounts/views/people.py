"""Pages of people, for administrators; for everybody else they do not exist."""

from django.contrib import messages
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views import View

from accounts import services
from accounts.forms import InviteForm, LevelForm, PersonFilter, ReasonForm, RoleForm
from accounts.models import Invitation, Person
from medsyn.roles import StaffMixin
from ratings.models import Expertise, Study
from ratings.services import StudyError, progress_of, verify_level
from ratings.views import ordering, paged

_NOTHING_YET = {"done": 0, "total": 0}


def _link_page(request: HttpRequest, invitation: Invitation, token: str) -> HttpResponse:
    """The link, shown this once, and whether it was mailed."""
    name = "accounts:join" if invitation.kind == Invitation.Kind.JOIN else "accounts:new-password"
    link = request.build_absolute_uri(reverse(name, args=[token]))
    context = {
        "invitation": invitation,
        "link": link,
        "is_mailed": services.mail_link(invitation=invitation, link=link),
    }
    response = render(request, "accounts/link.html", context)
    response["Cache-Control"] = "no-store"
    return response


class PersonList(StaffMixin, View):
    """Who has an account, and who was invited."""

    SORT_KEYS = {
        "name": "username",
        "role": "role",
        "level": "level",
        "studies": "num_studies",
        "seen": "last_login",
    }

    def get(self, request: HttpRequest) -> HttpResponse:
        form = PersonFilter(request.GET)
        people = Person.objects.in_full()
        people = form.apply(people) if form.is_valid() else people.none()
        context = {
            "form": form,
            "page": paged(people.order_by(*ordering(request, self.SORT_KEYS, "name")), request),
            "invitations": Invitation.objects.outstanding()
            .filter(kind=Invitation.Kind.JOIN)
            .select_related("created_by")
            .prefetch_related("studies"),
        }
        return render(request, "accounts/people.html", context)


class Invite(StaffMixin, View):
    """Let somebody in."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return render(request, "accounts/invite.html", {"form": InviteForm(initial={"verified_by": request.user.pk})})

    def post(self, request: HttpRequest) -> HttpResponse:
        form = InviteForm(request.POST)
        if form.is_valid():
            try:
                invitation, token = services.invite(invited_by=request.user, **form.cleaned_data)
            except services.AccountError as error:
                form.add_error(None, str(error))
            else:
                return _link_page(request, invitation, token)
        return render(request, "accounts/invite.html", {"form": form}, status=422)


class PersonDetail(StaffMixin, View):
    """A person: role, levels, studies, what was done to the account."""

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self.show(request, pk)

    @staticmethod
    def show(request: HttpRequest, pk: int, status: int = 200, **forms) -> HttpResponse:
        """The page, with the forms that were refused in place of fresh ones."""
        person = get_object_or_404(Person.objects.in_full(), pk=pk)
        studies = list(Study.objects.read_by(person).order_by("-is_open", "name"))
        progress = progress_of(studies, person)
        levels = Expertise.objects.of(person).select_related("verified_by")
        context = {
            "person": person,
            "is_self": person.pk == request.user.pk,
            "studies": [(study, progress.get(study.pk, _NOTHING_YET)) for study in studies],
            "levels": levels,
            "events": person.account_events.select_related("actor"),
            "role_form": RoleForm(initial={"role": person.role}),
            "level_form": LevelForm(initial={"expert_level": person.level, "verified_by": request.user.pk}),
            "close_form": ReasonForm(prefix="close"),
            "reset_form": ReasonForm(prefix="reset"),
        }
        return render(request, "accounts/person.html", context | forms, status=status)


class _PersonChange(StaffMixin, View):
    """A form on a person's page: what it asks for is done, or the page shows it again with what is wrong."""

    form_class: type[Form]
    form_name: str  # on the page
    prefix: str | None = None

    def change(self, person: Person, given: dict) -> str:
        """Do it, and say what was done. Raises AccountError or StudyError."""
        raise NotImplementedError

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        person = get_object_or_404(Person, pk=pk)
        form = self.form_class(request.POST, prefix=self.prefix)
        if form.is_valid():
            try:
                done = self.change(person, form.cleaned_data)
            except (services.AccountError, StudyError) as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, done)
                return redirect(person)
        return PersonDetail.show(request, pk, status=422, **{self.form_name: form})


class PersonRole(_PersonChange):
    """What a person may do."""

    form_class, form_name = RoleForm, "role_form"

    def change(self, person: Person, given: dict) -> str:
        services.change_role(person=person, by=self.request.user, **given)
        return f"{person} has another role from now on."


class PersonLevel(_PersonChange):
    """A verified level, from now on."""

    form_class, form_name = LevelForm, "level_form"

    def change(self, person: Person, given: dict) -> str:
        verify_level(
            person=person,
            expert_level=given["expert_level"],
            verified_by=given["verified_by"],
            specialty=given["specialty"],
            note=given["level_note"],
        )
        return f"Level {given['expert_level']} holds for what {person} rates from now on."


class PersonState(_PersonChange):
    """Closes an account, or opens it again: ``open`` in the form."""

    form_class, form_name, prefix = ReasonForm, "close_form", "close"

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        if request.POST.get("open") != "1":
            return super().post(request, pk)
        person = get_object_or_404(Person, pk=pk)
        services.open_account(person=person, by=request.user)
        messages.success(request, f"{person} can sign in again.")
        return redirect(person)

    def change(self, person: Person, given: dict) -> str:
        services.close_account(person=person, by=self.request.user, **given)
        return f"The account of {person} is closed. The ratings stay."


class PersonSecondFactor(_PersonChange):
    """Forgets a lost telephone."""

    form_class, form_name, prefix = ReasonForm, "reset_form", "reset"

    def change(self, person: Person, given: dict) -> str:
        services.reset_second_factor(person=person, by=self.request.user, **given)
        return f"The second step of {person} is reset, and they are signed out."


class PersonPasswordLink(StaffMixin, View):
    """Makes a link under which the person chooses a new password."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        person = get_object_or_404(Person.objects.signing_in(), pk=pk)
        try:
            invitation, token = services.offer_new_password(person=person, offered_by=request.user)
        except services.AccountError as error:
            messages.error(request, str(error))
            return redirect(person)
        return _link_page(request, invitation, token)


class InvitationLink(StaffMixin, View):
    """Replaces the link of an invitation that was not accepted."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        invitation = get_object_or_404(Invitation, pk=pk, kind=Invitation.Kind.JOIN)
        try:
            token = services.new_link(invitation=invitation)
        except services.DeadLink:
            messages.error(request, "This invitation was accepted or withdrawn meanwhile: there is no link to renew.")
            return redirect("accounts:people")
        invitation.refresh_from_db()
        return _link_page(request, invitation, token)


class InvitationRevoke(StaffMixin, View):
    """Withdraws an invitation."""

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        invitation = get_object_or_404(Invitation, pk=pk, kind=Invitation.Kind.JOIN)
        try:
            services.revoke_invitation(invitation=invitation)
        except services.DeadLink:
            messages.error(request, "This invitation was accepted or withdrawn already.")
        else:
            messages.success(request, f"The invitation of {invitation.email} is withdrawn: its link is dead.")
        return redirect("accounts:people")

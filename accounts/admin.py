"""Administration of people. They come by invitation and change on the pages of people, which keep a record: here they
are looked at. What allauth registers (TOTP secrets among it) and the groups that are roles are taken out."""

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group

from accounts.models import AccountEvent, Invitation
from ratings.admin import ReadOnlyAdmin

for model in (get_user_model(), Group, EmailAddress, Authenticator):
    admin.site.unregister(model)


@admin.register(get_user_model())
class UserAdmin(ReadOnlyAdmin):
    list_display = ["username", "email", "is_staff", "is_active", "last_login"]
    list_filter = ["is_staff", "is_active", "groups"]
    search_fields = ["username", "email", "first_name", "last_name"]
    fields = ["username", "email", "first_name", "last_name", "is_staff", "is_active", "groups", "last_login"]


@admin.register(Invitation)
class InvitationAdmin(ReadOnlyAdmin):
    list_display = ["id", "kind", "email", "role", "created_by", "expires_at", "accepted_at", "revoked_at"]
    list_filter = ["kind", "role"]
    list_select_related = ["created_by"]
    exclude = ["token_sha256"]


@admin.register(AccountEvent)
class AccountEventAdmin(ReadOnlyAdmin):
    list_display = ["id", "person", "action", "note", "actor", "created_at"]
    list_filter = ["action"]
    list_select_related = ["person", "actor"]

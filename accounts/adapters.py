"""What this application asks of allauth otherwise than allauth does it."""

import base64
import io

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from qrcode.main import QRCode

from accounts import second_factor
from accounts.models import Person

_MISMATCH = "Username and password do not belong together."
_QUIET_ZONE = 4  # modules of light around a QR code: ISO/IEC 18004


class AccountAdapter(DefaultAccountAdapter):
    """Signing in: nobody signs up, failures do not tell whether an account exists."""

    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": _MISMATCH,
        "email_password_mismatch": _MISMATCH,
        "too_many_login_attempts": "Too many attempts failed. Wait a few minutes, then try again.",
        "rate_limited": "Too many attempts failed. Wait a few minutes, then try again.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def add_message(self, request, level, message_template=None, message_context=None, extra_tags="", message=None):
        """None of allauth's own: each page says itself what happened."""

    def pre_login(self, request: HttpRequest, user, **kwargs) -> HttpResponse | None:
        response = super().pre_login(request, user, **kwargs)
        if response is None:
            second_factor.note_password(request, user)
        return response

    def login(self, request: HttpRequest, user) -> None:
        super().login(request, user)
        second_factor.note_signed_in(request)

    def is_reauthentication_required(self, *, app: str, **kwargs) -> bool:
        """Whoever signed in a moment ago is not asked for the password again."""
        return not second_factor.signed_in_lately(context.request) and super().is_reauthentication_required(app=app)

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials) -> str:
        """Failures are counted by account, whichever of its names was tried, and by name where there is no account.

        allauth puts the request's Host header into the key: with another port in it each time nobody would ever be
        stopped (tests/accounts/test_sign_in.py).
        """
        name = credentials.get("email") or credentials.get("username") or ""
        person = Person.objects.named(name).first()
        return f"account {person.pk}" if person else f"name {name.casefold()}"


class SecondFactorAdapter(DefaultMFAAdapter):
    """TOTP: its secret encrypted in the database, its QR code drawn without style and script."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "cannot_delete_authenticator": "Administrators of this installation need the second step.",
        "incorrect_code": "This code is not the current one. Wait for the next, and check the telephone's clock.",
    }

    def get_totp_label(self, user) -> str:
        return user.get_username()

    def build_totp_svg(self, url: str) -> str:
        """An inline SVG of one path, dark modules as runs; colours come from the style sheet (``svg.qr``)."""
        code = QRCode(border=_QUIET_ZONE)
        code.add_data(url)
        matrix = code.get_matrix()
        path = io.StringIO()
        for y, row in enumerate(matrix):
            for x, is_dark in enumerate(row):
                if is_dark:
                    path.write(f"M{x} {y}h1v1h-1z")
        size = len(matrix)
        head = f'<svg class="qr" role="img" aria-label="QR code of the key" viewBox="0 0 {size} {size}">'
        return f'{head}<path d="{path.getvalue()}"/></svg>'

    def can_delete_authenticator(self, authenticator: Authenticator) -> bool:
        return not (settings.REQUIRE_MFA and authenticator.user.is_staff)

    def encrypt(self, text: str) -> str:
        return _cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        try:
            return _cipher().decrypt(encrypted_text.encode()).decode()
        except InvalidToken:
            raise ImproperlyConfigured(
                "A second factor was stored under another MEDSYN_SECRET_KEY and cannot be read. Set that key again, "
                "or reset the person's second factor on their page."
            ) from None


def _cipher() -> MultiFernet:
    """Keys derived from SECRET_KEY and its fallbacks (HKDF, RFC 5869); the first one encrypts."""
    keys = []
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        derived = HKDF(SHA256(), 32, salt=None, info=b"medsyn second factor").derive(secret.encode())
        keys.append(Fernet(base64.urlsafe_b64encode(derived)))
    return MultiFernet(keys)

"""All settings, read strictly from the environment (docs/configuration.md lists the variables).

Two modes share this code. *embedded* (the default) needs nothing but Python: SQLite, a broker made of files,
a secret key kept in var/. *production* takes every secret and service from the environment and refuses to
start without them.
"""

import os
import secrets
from datetime import timedelta
from pathlib import Path

import dj_database_url
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from medsyn import environment

BASE_DIR = Path(__file__).resolve().parent.parent
MODE = environment.choice("MEDSYN_MODE", "embedded", ("embedded", "production"))
IS_PRODUCTION = MODE == "production"
DEBUG = environment.flag("MEDSYN_DEBUG", False)
if DEBUG and IS_PRODUCTION:
    raise ImproperlyConfigured("MEDSYN_DEBUG=1 shows source code to visitors: not in production. Unset it.")

# Everything the application stores: database, images, releases, runs, broker files.
VAR_DIR = Path(environment.text("MEDSYN_VAR_DIR", str(BASE_DIR / "var"))).resolve()
ARTIFACT_ROOT = VAR_DIR / "artifacts"


def _required(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ImproperlyConfigured(f"{name} is not set; MEDSYN_MODE=production needs it (docs/configuration.md).")
    return value


def _embedded_secret_key() -> str:
    """The key kept in var/: made once, readable by its owner only; the first process to make it wins."""
    path = VAR_DIR / "secret_key"
    VAR_DIR.mkdir(parents=True, exist_ok=True)
    candidate = path.with_name(f".secret_key.{os.getpid()}")
    if not path.exists():
        candidate.touch(mode=0o600)
        candidate.write_text(secrets.token_urlsafe(64))
        try:
            os.link(candidate, path)
        except FileExistsError:
            pass  # another process was faster; its key is the one
        finally:
            candidate.unlink()
    return path.read_text().strip()


SECRET_KEY = os.environ.get("MEDSYN_SECRET_KEY") or (
    _required("MEDSYN_SECRET_KEY") if IS_PRODUCTION else _embedded_secret_key()
)
ALLOWED_HOSTS = environment.names("MEDSYN_ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = environment.names("MEDSYN_TRUSTED_ORIGINS", [])
if IS_PRODUCTION:
    _required("MEDSYN_ALLOWED_HOSTS")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "rest_framework",
    "rest_framework.authtoken",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "medsyn",
    "generation",
    "ratings",
    "training",
    "accounts",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "medsyn.middleware.PrivateReplies",
    "medsyn.middleware.LimitedBody",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "accounts.middleware.RequireSecondFactor",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "medsyn.urls"
WSGI_APPLICATION = "medsyn.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "medsyn.roles.for_templates",
            ],
            "builtins": ["medsyn.templatetags.wording"],
        },
    },
]

# Database -------------------------------------------------------------------------------------------------
_DATABASE_URL = (
    _required("MEDSYN_DATABASE_URL")
    if IS_PRODUCTION
    else environment.text("MEDSYN_DATABASE_URL", f"sqlite:///{VAR_DIR / 'medsyn.sqlite3'}")
)
DATABASES = {"default": dj_database_url.parse(_DATABASE_URL, conn_max_age=60, conn_health_checks=True)}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["ENGINE"] = "medsyn.sqlite"  # writers take turns
    VAR_DIR.mkdir(parents=True, exist_ok=True)
    # Web server and workers write at once: write-ahead log, and transactions that take the write lock when
    # they begin, so that a reader never fails while it becomes a writer. Recursive triggers: else a row that
    # INSERT OR REPLACE deletes would pass the guards of calibration.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA recursive_triggers=ON;",
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Shared by every process and thread: limits on signing in are counted here. The table is a model of accounts.
CACHES = {"default": environment.cache("MEDSYN_CACHE_URL", table="medsyn_cache")}

# Jobs -----------------------------------------------------------------------------------------------------
CELERY_BROKER_URL = (
    _required("MEDSYN_BROKER_URL")
    if IS_PRODUCTION
    else environment.text("MEDSYN_BROKER_URL", "filesystem://localhost")
)
if CELERY_BROKER_URL.startswith("filesystem://"):
    # A broker that needs no server. It may lose everything: the rows are the truth, a sweep enqueues again.
    _BROKER_DIR = VAR_DIR / "broker"
    for _folder in ("messages", "control"):
        (_BROKER_DIR / _folder).mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_BROKER_DIR / "messages"),
        "data_folder_out": str(_BROKER_DIR / "messages"),
        "control_folder": str(_BROKER_DIR / "control"),
        "polling_interval": 0.2,
    }
CELERY_TASK_IGNORE_RESULT = True  # results live in the rows
CELERY_TASK_ACKS_LATE = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULE_FILENAME = str(VAR_DIR / "celerybeat-schedule")
CELERY_TASK_ROUTES = {
    # Scoring a pool takes a minute, and somebody waits for it: not behind a training that takes hours.
    "training.choose_reading_batch": {"queue": "generation"},
    "generation.*": {"queue": "generation"},
    "training.*": {"queue": "training"},
}
CELERY_TASK_DEFAULT_QUEUE = "generation"
JOB_SWEEP_SECONDS = environment.integer("MEDSYN_JOB_SWEEP_SECONDS", 15, minimum=1, maximum=3600)
CELERY_BEAT_SCHEDULE = {
    # A sweep that waited behind long work is stale: the next one does the same.
    name: {
        "task": name,
        "schedule": timedelta(seconds=JOB_SWEEP_SECONDS),
        "options": {"expires": JOB_SWEEP_SECONDS},
    }
    for name in ("generation.sweep_generation_jobs", "training.sweep_training_runs")
} | {
    # What is served goes on being promised until somebody looks: ratings of served images are looked at every hour.
    "ratings.watch_certificates": {
        "task": "ratings.watch_certificates",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    }
}
# A RUNNING row whose heartbeat is older than this belongs to a dead worker and may be claimed again.
JOB_LEASE_SECONDS = environment.integer("MEDSYN_JOB_LEASE_SECONDS", 60, minimum=2, maximum=3600)
# Torch threads of a worker and of each training process it starts (docs/decisions/0003-threads.md).
TORCH_NUM_THREADS = environment.integer("MEDSYN_TORCH_THREADS", 1, minimum=1, maximum=256)
DEVICE = environment.device("MEDSYN_DEVICE", environment.device("DEVICE", "auto"))

# Security -------------------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_AGE = 8 * 3600

# People: docs/people.md. allauth signs in, counts failures and asks for the second step; it signs nobody up.
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
REQUIRE_MFA = environment.flag("MEDSYN_REQUIRE_MFA", IS_PRODUCTION)  # of administrators
INVITATION_DAYS = environment.integer("MEDSYN_INVITATION_DAYS", 7, minimum=1, maximum=90)
LOGIN_ATTEMPTS = environment.integer("MEDSYN_LOGIN_ATTEMPTS", 5, minimum=1, maximum=100)
LOGIN_WAIT_SECONDS = environment.integer("MEDSYN_LOGIN_WAIT_SECONDS", 300, minimum=1, maximum=24 * 3600)
ACCOUNT_ADAPTER = "accounts.adapters.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "username*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"  # an invitation is bound to its address
ACCOUNT_SESSION_REMEMBER = True  # for SESSION_COOKIE_AGE
ACCOUNT_REAUTHENTICATION_TIMEOUT = 300
ACCOUNT_RATE_LIMITS = {
    # A hospital is one address: many people sign in from it at once, and some mistype.
    "login": "300/m/ip",
    "login_failed": f"30/m/ip,{LOGIN_ATTEMPTS}/{LOGIN_WAIT_SECONDS}s/key",
    "reset_password_from_key": "120/m/ip",  # links of invitations too: a study may begin with all readers in one room
}
# Proxies of our own in front, each of which appends to X-Forwarded-For: the address that limits are counted by.
ALLAUTH_TRUSTED_PROXY_COUNT = environment.integer(
    "MEDSYN_TRUSTED_PROXIES", 1 if IS_PRODUCTION else 0, minimum=0, maximum=10
)
MFA_ADAPTER = "accounts.adapters.SecondFactorAdapter"
MFA_TOTP_ISSUER = "MedSyn"
MFA_TOTP_TOLERANCE = 1  # periods of 30 s that a telephone's clock may be off
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_RECOVERY_CODES_SHOW_ONCE = True

# Mail carries invitations and new passwords; without a server the administrator copies the links.
_MAIL = environment.mail_server("MEDSYN_EMAIL_URL")
MAIL_IS_CONFIGURED = _MAIL is not None
DEFAULT_FROM_EMAIL = environment.text("MEDSYN_EMAIL_FROM", "medsyn@localhost")
EMAIL_TIMEOUT = 20  # seconds
if _MAIL is not None:
    EMAIL_BACKEND, EMAIL_HOST, EMAIL_PORT = _MAIL.backend, _MAIL.host, _MAIL.port
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _MAIL.user, _MAIL.password
    EMAIL_USE_TLS, EMAIL_USE_SSL = _MAIL.use_tls, _MAIL.use_ssl

# Darkness between two images that are rated, against carrying the last one's impression over.
RATING_GAP_MS = environment.integer("MEDSYN_RATING_GAP_MS", 40, minimum=0, maximum=60)
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "blob:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
# The embedded mode speaks plain HTTP on localhost; production stands behind TLS.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = IS_PRODUCTION
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if IS_PRODUCTION else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = IS_PRODUCTION
if IS_PRODUCTION:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# A rating or a form is small; files come in by command line, not by request.
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

REST_FRAMEWORK = {
    # Closed by default: a view that forgets its permission serves administrators only.
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework.authentication.SessionAuthentication",
        "rest_framework.authentication.TokenAuthentication",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    # OPTIONS would describe every endpoint to everybody who has an account; /api/schema/ does to whom it may.
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "MedSyn",
    "DESCRIPTION": "Generate, rate, export, train and release synthetic medical images.",
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "medsyn.api_refusals.add_refusals",
    ],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAdminUser"],
    "ENUM_NAME_OVERRIDES": {
        "JobStateEnum": "medsyn.jobs.Job.State",
        "RatingStateEnum": "ratings.models.Rating.State",
    },
}

# Files, language, time ------------------------------------------------------------------------------------
STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Serve straight from static/ without a collect step in the embedded mode; hashed names in production.
WHITENOISE_USE_FINDERS = WHITENOISE_AUTOREFRESH = not IS_PRODUCTION
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": (
            "whitenoise.storage.CompressedManifestStaticFilesStorage"
            if IS_PRODUCTION
            else "django.contrib.staticfiles.storage.StaticFilesStorage"
        )
    },
}
LANGUAGE_CODE = "en-gb"
TIME_ZONE = environment.text("MEDSYN_TIME_ZONE", "UTC")
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "filters": {"hide_links": {"()": "accounts.log_filter.HideLinks"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["hide_links"]}},
    "root": {"handlers": ["stderr"], "level": environment.text("MEDSYN_LOG_LEVEL", "INFO")},
}

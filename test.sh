#!/usr/bin/env bash
# Makes the environment and runs everything that must hold: lint, import contracts, migrations, deployment
# checks, the OpenAPI schema and all tests (a real PostgreSQL, Redis and Chromium where they can be had).
# Arguments go to pytest: `bash test.sh tests/ratings -x`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh
make_environment
bin=.venv/bin

export MEDSYN_VAR_DIR
MEDSYN_VAR_DIR=$(mktemp -d "${TMPDIR:-/tmp}/medsyn-test.XXXXXX")
trap 'rm -rf "$MEDSYN_VAR_DIR"' EXIT

say "Lint"
"$bin/ruff" check .
"$bin/ruff" format --check --quiet . || fail "Formatting differs: run .venv/bin/ruff format ."

say "Import contracts"
"$bin/lint-imports"

say "Migrations and deployment checks"
"$bin/python" manage.py makemigrations --check --dry-run
MEDSYN_MODE=production MEDSYN_SECRET_KEY="$("$bin/python" -c 'import secrets; print(secrets.token_urlsafe(64))')" \
  MEDSYN_ALLOWED_HOSTS=medsyn.example MEDSYN_DATABASE_URL=postgres://medsyn@localhost/medsyn \
  MEDSYN_BROKER_URL=redis://localhost/0 "$bin/python" manage.py check --deploy --fail-level WARNING
"$bin/python" manage.py spectacular --validate --fail-on-warn --file "$MEDSYN_VAR_DIR/schema.yaml"

say "Tests"
# Two workers: one per core of the smallest machine we promise. A file stays on one worker (module fixtures); in
# which order they take files is settled in tests/conftest.py.
"$bin/python" -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder -m "not benchmark" "$@"
say "All checks passed"

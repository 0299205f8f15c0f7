# Sourced by start.sh and test.sh: makes .venv with everything requirements.txt pins, and speaks about it.
# Needs bash and Python 3.11 or newer. Run again it changes nothing and takes about a second.

say() { printf '\n[%4ds] %s\n' "$SECONDS" "$*"; }
fail() { printf '\nError: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  return 1
}

# uv from the PATH, else installed by pip into the environment itself.
find_uv() {
  if command -v uv >/dev/null 2>&1; then
    command -v uv
    return
  fi
  [ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2
  printf '%s' .venv/bin/uv
}

make_environment() {
  local python uv stamp wanted
  python=$(find_python) || fail "Python 3.11 or newer is needed; set PYTHON to its path."
  if ! [ -x .venv/bin/python ]; then
    say "Making .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "python -m venv failed. On Debian install python3-venv."
  fi
  stamp=.venv/requirements.installed
  wanted="$(cat requirements.txt) torch-backend=${UV_TORCH_BACKEND:-}"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "Installing the packages of requirements.txt${UV_TORCH_BACKEND:+ (torch: $UV_TORCH_BACKEND)}"
    uv=$(find_uv)
    # Compiled once here: importing torch without its bytecode takes a minute where Python may not write any.
    "$uv" pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.txt
    printf '%s' "$wanted" >"$stamp"
  fi
}

# Several processes share the cores. Each keeps to its own threads, and a thread that waits sleeps instead of
# spinning: two spinning threads beside a busy process were up to ten times slower than one (docs/decisions).
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${MEDSYN_TORCH_THREADS:-1}}"
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export PYTHONUNBUFFERED=1

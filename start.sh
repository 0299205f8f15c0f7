#!/usr/bin/env bash
# MedSyn in one command: environment, database, demo accounts, then the whole loop once on procedural phantoms
# (fine-tune, generate, rate by simulated experts, train selector and policy, release, generate filtered), and the
# application at localhost until Ctrl+C. Run again it goes on where it was and deletes nothing.
#
# Overrides (environment): DEVICE, CUDA_VISIBLE_DEVICES, AUTOPICK_GPU, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE,
# PYTORCH_CUDA_ALLOC_CONF, USE_8BIT_ADAM, TRAIN_BATCH_SIZE, GRADIENT_ACCUMULATION_STEPS, RESOLUTION, ENABLE_XFORMERS,
# USE_EMA, UNET_OUTPUT_DIR, RLHF_CONFIG_PATH, BASE_PROMPT, NUM_IMAGES, E2E_OUTPUT_DIR, WANDB_DISABLED, SERVE, PORT;
# for the demo's size MAX_TRAIN_STEPS, RLHF_EPOCHS, DEMO_IMAGES (docs/configuration.md says what each does).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. scripts/environment.sh

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}"
export WANDB_DISABLED="${WANDB_DISABLED:-true}"
export DEVICE="${DEVICE:-auto}"
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-1}"
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-32}"
RESOLUTION="${RESOLUTION:-128}"
UNET_OUTPUT_DIR="${UNET_OUTPUT_DIR:-./checkpoints/medical-model}"
RLHF_CONFIG_PATH="${RLHF_CONFIG_PATH:-./config.yaml}"
BASE_PROMPT="${BASE_PROMPT:-Chest X-ray: normal lung fields without infiltrates}"
NUM_IMAGES="${NUM_IMAGES:-3}"
E2E_OUTPUT_DIR="${E2E_OUTPUT_DIR:-generated_e2e/finetuned}"
MAX_TRAIN_STEPS="${MAX_TRAIN_STEPS:-12}"
RLHF_EPOCHS="${RLHF_EPOCHS:-40}"
DEMO_IMAGES="${DEMO_IMAGES:-180}"
SERVE="${SERVE:-1}"
PORT="${PORT:-8000}"

switch() { # NAME VALUE: refuse what is neither 0 nor 1
  case "$2" in 0 | 1) ;; *) fail "$1=$2 is neither 0 nor 1." ;; esac
}
switch SERVE "$SERVE"
switch AUTOPICK_GPU "${AUTOPICK_GPU:-1}"
switch USE_8BIT_ADAM "${USE_8BIT_ADAM:-0}"
switch ENABLE_XFORMERS "${ENABLE_XFORMERS:-0}"
switch USE_EMA "${USE_EMA:-0}"

# The least loaded GPU, where there are any and nobody chose.
if [ "${AUTOPICK_GPU:-1}" = 1 ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ] && command -v nvidia-smi >/dev/null 2>&1; then
  gpu=$(nvidia-smi --query-gpu=index,memory.used --format=csv,noheader,nounits 2>/dev/null |
    sort -t, -k2 -n | head -n 1 | cut -d, -f1 || true)
  [ -z "$gpu" ] || export CUDA_VISIBLE_DEVICES="$gpu"
fi

started=0
step() { # TEXT COMMAND...: run it, then say how long it took
  local text=$1
  shift
  say "$text"
  started=$SECONDS
  "$@"
  printf '        done in %d s\n' "$((SECONDS - started))"
}

step "Environment" make_environment
manage=(.venv/bin/python manage.py)

step "Database" "${manage[@]}" migrate --verbosity 0
step "Accounts" "${manage[@]}" demo_accounts
step "Phantom dataset" "${manage[@]}" demo_dataset

var="${MEDSYN_VAR_DIR:-var}"
study="Demo study (simulated experts)"
flags=(--train_batch_size "$TRAIN_BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACCUMULATION_STEPS"
  --resolution "$RESOLUTION" --max_train_steps "$MAX_TRAIN_STEPS" --learning_rate 2e-5 --checkpointing_steps 4
  --validation_prompts "$BASE_PROMPT")
[ "${USE_8BIT_ADAM:-0}" = 0 ] || flags+=(--use_8bit_adam)
[ "${ENABLE_XFORMERS:-0}" = 0 ] || flags+=(--enable_xformers_memory_efficient_attention)
[ "${USE_EMA:-0}" = 0 ] || flags+=(--use_ema)
step "Fine-tuning medsyn-tiny ($MAX_TRAIN_STEPS steps of $((TRAIN_BATCH_SIZE * GRADIENT_ACCUMULATION_STEPS)) images)" \
  "${manage[@]}" finetune --train_data_dir "$var/demo/phantoms/metadata.csv" --output_dir "$UNET_OUTPUT_DIR" "${flags[@]}"

step "$DEMO_IMAGES images of uneven quality, and a study of them" \
  "${manage[@]}" demo_study --model "$UNET_OUTPUT_DIR/pipeline" --name "$study" --num_images "$DEMO_IMAGES"
step "Simulated experts rate them (no clinician did)" "${manage[@]}" simulate_ratings --study "$study"
step "Selector and policy ($RLHF_EPOCHS epochs), then a release" \
  "${manage[@]}" train_rlhf --config "$RLHF_CONFIG_PATH" --study "$study" --pipeline "$UNET_OUTPUT_DIR/pipeline" \
  --max_epochs "$RLHF_EPOCHS" --unless_done --release
if compgen -G "$E2E_OUTPUT_DIR/*.png" >/dev/null; then
  say "$E2E_OUTPUT_DIR holds filtered images already"
else
  step "$NUM_IMAGES filtered images: $BASE_PROMPT" "${manage[@]}" generate --mode rlhf --prompt "$BASE_PROMPT" \
    --img_num "$NUM_IMAGES" --num_inference_steps 12 --guidance_scale 3 --guidance_interval 0.35 1 \
    --output_dir "$E2E_OUTPUT_DIR"
fi

say "The loop is closed: $E2E_OUTPUT_DIR holds the filtered images, the application serves the release."
[ "$SERVE" = 1 ] || exit 0

# Serve: the web server and two workers (docs/decisions/0002). Ctrl+C ends them in order.
celery=(.venv/bin/celery --quiet --app medsyn.celery worker --pool solo --loglevel WARNING --without-gossip --without-mingle)
pids=()
stop_all() {
  trap '' INT TERM
  say "Stopping"
  kill -TERM "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  say "Stopped; everything is kept in var/"
}
trap 'stop_all; exit 0' INT TERM
trap 'stop_all' EXIT
# Process groups of their own, so that Ctrl+C reaches this script only and the order is ours.
set -m
"${celery[@]}" --queues generation --hostname generation@%h &
pids+=($!)
"${celery[@]}" --queues training --hostname training@%h --beat &
pids+=($!)
PORT="$PORT" .venv/bin/gunicorn medsyn.wsgi & # gunicorn.conf.py
pids+=($!)
set +m
say "MedSyn is at http://localhost:$PORT (Ctrl+C ends it)"
while kill -0 "${pids[@]}" 2>/dev/null; do sleep 1; done
fail "A process ended by itself; its last lines stand above."

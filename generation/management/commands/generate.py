"""`manage.py generate`: images from prompts into a folder, with or without the filter."""

import secrets
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation.embedded_model import draws_phantoms
from generation.filtering import Ledger
from generation.gate_standing import gates_file_of
from generation.model_flags import (
    add_model_flags,
    add_sampling_flags,
    check_whole,
    load,
    model_errors,
    pretrained_model,
    read_parameters,
    settle_release,
)
from generation.models import Release
from generation.output_folder import ATTEMPTS_NAME, FORMATS, OutputFolder
from generation.parameters import MODES, Parameters
from generation.services import (
    MAX_IMAGES_PER_PROMPT,
    MAX_SEED,
    POLICY_NAME,
    SELECTOR_NAME,
)
from medsyn.modalities import ParsedPrompt, PromptError, UnknownModality, kind_from_name, parse_prompt

if TYPE_CHECKING:  # torch stays out until a model is loaded: wrong flags and --help need not wait for it
    from generation.production import Call, DrawnImage, ModelChoice, Models

OUTPUT_DIRS = {"baseline": "generated_images", "rlhf": "generated_rlhf"}
_DEFAULTS = Parameters()


@dataclass(frozen=True)
class ModelFiles:
    """Which models the flags and the database mean."""

    pretrained_model: str | None  # folder or hub id; None: medsyn-tiny
    model_used: str | None  # fine-tuned UNet or checkpoint-N put into it
    selector: Path | None
    policy: Path | None
    release_name: str  # empty where no release draws
    gates: Path | None = None  # the release's, where they are on and its own selector and policy judge


class Command(BaseCommand):
    help = (
        "Generate synthetic medical images from prompts. Without a model flag the active release draws them, "
        "else the embedded medsyn-tiny. Images of earlier calls are kept: numbering goes on after them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        _add_prompt_flags(parser)
        add_model_flags(parser)
        add_sampling_flags(parser)
        _add_filter_flags(parser)

    def handle(self, **options: Any) -> None:
        # What can be refused without loading a model is refused first: loading takes seconds.
        prompts = _read_prompts(options)
        check_whole("--img_num", options["img_num"], 1, MAX_IMAGES_PER_PROMPT)
        seed = secrets.randbelow(MAX_SEED + 1) if options["seed"] is None else options["seed"]
        check_whole("--seed", seed, 0, MAX_SEED)
        release = settle_release(options, self.stderr.write)
        parameters = read_parameters(options, release)
        files = _settle_files(options, release)
        with model_errors():
            call, choice = _call_and_choice(options, prompts, parameters, seed, files)
            models = load(choice, self.stderr.write, options)
            path = Path(options["output_dir"] or OUTPUT_DIRS[call.mode])
            self._produce(models, call, path, options["format"])

    def _produce(self, models: "Models", call: "Call", path: Path, image_format: str) -> None:
        try:
            folder = OutputFolder(path, image_format)
            written = (
                self._baseline(models, call, folder)
                if call.mode == "baseline"
                else self._filtered(models, call, folder)
            )
        except OSError as error:
            raise CommandError(
                f"Cannot write to {path}: {error.strerror}. Make room or name another folder."
            ) from error
        self.stderr.write(f"{written} images in {path}, seeds from {call.seed}")

    def _baseline(self, models: "Models", call: "Call", folder: OutputFolder) -> int:
        from generation.production import draw_baseline

        blocked = 0
        with tqdm(total=call.num_places, unit="image", disable=None) as bar:
            for batch in draw_baseline(models, call, on_step=_show_step(bar)):
                for drawn in batch:
                    if drawn.is_copy:
                        blocked += 1
                    else:
                        self.stdout.write(str(_write(folder, models, call, drawn)))
                bar.update(len(batch))
        self._tell_blocked(blocked)
        return call.num_places - blocked

    def _tell_blocked(self, number: int) -> None:
        if number:
            self.stderr.write(f"{number} images were blocked and not written: they copy training images.")

    def _filtered(self, models: "Models", call: "Call", folder: OutputFolder) -> int:
        from generation.production import draw_filtered

        ledger, blocked = Ledger(call.rule, call.seed, call.num_places), 0
        with tqdm(total=call.num_places, unit="image", disable=None) as bar:
            for batch in draw_filtered(models, call, ledger, on_step=_show_step(bar)):
                for drawn in batch:
                    _note(folder, models, drawn)
                    blocked += drawn.is_copy
                    if drawn.verdict.accepted:
                        self.stdout.write(str(_write(folder, models, call, drawn, ledger)))
                bar.update(call.num_places - len(ledger.open_places) - bar.n)
        self._tell_blocked(blocked)
        filled, spent = len(ledger.filled_places), ledger.spent
        self.stderr.write(
            f"{spent.candidates} candidates, {spent.stopped} stopped early, {spent.dropped} given up; "
            f"{spent.unet_evaluations} UNet evaluations"
            + (f", {spent.unet_evaluations / filled:.0f} per accepted image" if filled else "")
        )
        if not filled:
            raise CommandError(f"{ledger.explain_empty()} Every attempt is in {folder.path / ATTEMPTS_NAME}.")
        if ledger.empty_places:
            self.stderr.write(ledger.explain_empty())
        return filled


# --- flags ---


def _add_prompt_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--prompt", help='"{kind}: {description}", as in "Chest X-ray: normal lung fields"')
    parser.add_argument("--prompts_file", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--modality", help="kind of image, for prompts without a prefix of their own")
    parser.add_argument("--img_num", type=int, default=3, help="images of each prompt (default 3)")
    parser.add_argument("--seed", type=int, help="image i uses seed + i (default: random, and recorded)")
    parser.add_argument("--output_dir", help="default: generated_images, or generated_rlhf in rlhf mode")
    parser.add_argument(
        "--format", choices=FORMATS, default="png", help="dicom: Secondary Capture objects, marked synthetic"
    )


def _add_filter_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--mode", choices=MODES, default="baseline", help="rlhf: only what selector and policy accept"
    )
    parser.add_argument(
        "--quality_threshold",
        type=float,
        help=f"rlhf: both scores must reach it (default: the release's, else {_DEFAULTS.quality_threshold})",
    )
    parser.add_argument("--policy_checkpoint", type=Path, help="rlhf: instead of the release's policy")
    parser.add_argument("--selector_checkpoint", type=Path, help="rlhf: instead of the release's selector")
    parser.add_argument("--max_attempts", type=int, default=_DEFAULTS.max_attempts, help="rlhf: attempts per image")
    parser.add_argument(
        "--num_candidates", type=int, default=_DEFAULTS.num_candidates, help="rlhf: candidates per attempt"
    )
    parser.add_argument(
        "--no_gates",
        dest="use_gates",
        action="store_false",
        help="rlhf: draw every candidate to its end, also where the release has gates that stop hopeless ones early",
    )


# --- what the flags mean ---


def _read_prompts(options: dict[str, Any]) -> list[ParsedPrompt]:
    if (options["prompt"] is None) == (options["prompts_file"] is None):
        raise CommandError("Give either --prompt or --prompts_file.")
    prefix = None
    if options["modality"] is not None:
        try:
            prefix = kind_from_name(options["modality"]).prefix
        except UnknownModality as error:
            raise CommandError(f"--modality: {error}") from error
    lines = (
        [("--prompt", options["prompt"])] if options["prompt"] is not None else _prompt_lines(options["prompts_file"])
    )
    return [_read_prompt(where, text, prefix) for where, text in lines]


def _prompt_lines(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--prompts_file {path} cannot be read: {error}") from error
    found = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise CommandError(f"--prompts_file {path} holds no prompt. Write one per line.")
    return found


def _read_prompt(where: str, text: str, prefix: str | None) -> ParsedPrompt:
    """The prompt; --modality supplies a missing prefix and must agree with one that is there."""
    try:
        prompt = parse_prompt(text)
    except PromptError as error:
        if prefix is None:
            raise CommandError(f"{where}: {error} Or name the kind of image with --modality.") from error
        return _read_prompt(where, f"{prefix}: {text}", prefix=None)
    if prefix is not None and prompt.kind.prefix != prefix:
        raise CommandError(
            f"{where}: the prompt says {prompt.kind.prefix}, --modality says {prefix}. Drop one of them."
        )
    return prompt


def _settle_files(options: dict[str, Any], release: Release | None) -> ModelFiles:
    selector, policy = _settle_judges(options, release)
    own = release is not None and not (options["selector_checkpoint"] or options["policy_checkpoint"])
    gates = gates_file_of(release) if own and options["mode"] == "rlhf" else None
    return ModelFiles(
        pretrained_model(options, release), options["model_used"], selector, policy, str(release or ""), gates
    )


def _settle_judges(options: dict[str, Any], release: Release | None) -> tuple[Path | None, Path | None]:
    selector, policy = options["selector_checkpoint"], options["policy_checkpoint"]
    if options["mode"] == "baseline":
        if selector or policy:
            raise CommandError(
                "--selector_checkpoint and --policy_checkpoint are used in rlhf mode: add --mode rlhf."
            )
        return None, None
    if release is not None:
        selector = selector or release.folder / SELECTOR_NAME
        policy = policy or release.folder / POLICY_NAME
    pairs = {"--selector_checkpoint": selector, "--policy_checkpoint": policy}
    missing = [flag for flag, path in pairs.items() if path is None]
    if missing:
        raise CommandError(
            f"--mode rlhf needs a selector and a policy. Missing: {' and '.join(missing)}. Give the files that "
            "training wrote, or publish and activate a release; --mode baseline needs neither."
        )
    return selector, policy


def _call_and_choice(
    options: dict[str, Any], prompts: list[ParsedPrompt], parameters: Parameters, seed: int, files: ModelFiles
) -> tuple["Call", "ModelChoice"]:
    from generation.diffusion.loading import ModelSource
    from generation.production import Call, ModelChoice

    texts = tuple(prompt.text for prompt in prompts)
    call = Call(texts, options["img_num"], seed, options["mode"], parameters)
    source = ModelSource(pretrained_model=files.pretrained_model, model_used=files.model_used)
    choice = ModelChoice(
        source, files.selector, files.policy, options["device"], parameters.precision, files.release_name, files.gates
    )
    return call, choice


# --- writing ---


def _show_step(bar: tqdm):
    return lambda done, total: bar.set_postfix_str(f"step {done}/{total}")


def _write(
    folder: OutputFolder, models: "Models", call: "Call", drawn: "DrawnImage", ledger: Ledger | None = None
) -> Path:
    from generation.records import png_bytes, sidecar

    is_phantom = draws_phantoms(models.generator.folder)
    png = png_bytes(drawn.picture, prompt=drawn.prompt, seed=drawn.seed, is_phantom=is_phantom)
    attempts = ledger.drawn_for(drawn.place) if ledger else ()
    facts = sidecar(drawn, models, call, png=png, is_phantom=is_phantom, attempts=attempts)
    return folder.add(parse_prompt(drawn.prompt).kind, drawn.verdict, png, facts)


def _note(folder: OutputFolder, models: "Models", drawn: "DrawnImage") -> None:
    folder.note_attempt(
        prompt=drawn.prompt,
        seed=drawn.seed,
        place=drawn.place,
        attempt=drawn.attempt,
        selector=drawn.verdict.selector_score,
        policy=drawn.verdict.policy_score,
        accepted=drawn.verdict.accepted,
        weights_sha256=models.sha256,
    )

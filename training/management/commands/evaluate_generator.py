"""`manage.py evaluate_generator`: how good a generator is, as a table, a JSON file and a contact sheet."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation.embedded_model import draws_phantoms
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
from generation.services import MAX_SEED
from medsyn.artifacts import file_sha256

if TYPE_CHECKING:  # torch stays out until it is needed: wrong flags and --help need not wait for it
    from generation.production import Models
    from training.evaluation.evaluate import Protocol
    from training.evaluation.images import GeneratedFile, ImageSet
    from training.finetuning.dataset import Row

IMAGES_DIR = "images"  # in the output folder: what was drawn for this evaluation


class Command(BaseCommand):
    help = (
        "Measure a generator against real images it has not seen: draws images for their captions (or takes a folder "
        "of generated ones), prints a table and writes evaluation.json and contact_sheet.png. Called again with the "
        "same flags it draws only what is missing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_model_flags(parser)
        add_sampling_flags(parser)
        _add_set_flags(parser)
        _add_measuring_flags(parser)

    def handle(self, **options: Any) -> None:
        _check(options)
        with _evaluation_errors():
            with model_errors():
                images = self._images(options)
            self._measure(images, options)

    def _images(self, options: dict[str, Any]) -> "_Images":
        from training.evaluation.images import generated_files

        reference = _Reference.read(options)
        if options["generated"] is None:
            release = settle_release(options, self.stderr.write)
            models = self._load(options, release)
            files = self._draw(models, release, reference, options)
        else:
            # Here the model flags name a text encoder only; nothing is drawn.
            models = self._load(options, None) if _names_model(options) else None
            files = generated_files(options["generated"])
        reference.check_unseen(models)
        facts = {"created": datetime.now(UTC).isoformat(), **reference.facts(), **_facts(files, options)}
        return _Images(*reference.sets_with(files), files, models, facts)

    def _load(self, options: dict[str, Any], release: Release | None) -> "Models":
        from generation.diffusion.loading import ModelSource
        from generation.production import ModelChoice

        source = ModelSource(pretrained_model(options, release), options["model_used"])
        precision = read_parameters(options, release).precision
        choice = ModelChoice(source, None, None, options["device"], precision, str(release or ""))
        return load(choice, self.stderr.write, options)

    def _draw(
        self, models: "Models", release: Release | None, reference: "_Reference", options: dict[str, Any]
    ) -> list["GeneratedFile"]:
        from generation.production import Call
        from training.evaluation.drawing import draw_images
        from training.evaluation.images import EvaluationError

        if reference.rows is None and not draws_phantoms(models.generator.folder):
            raise EvaluationError(
                f"{models.name} does not draw phantoms, so phantoms are no reference for it. Give real images that "
                "it was not trained on: --real CSV."
            )
        parameters = read_parameters(_as_recommended(models, options), release)
        self.stderr.write(f"{parameters.num_inference_steps} steps, guidance {parameters.guidance_scale:g}")
        call = Call(reference.captions(options["num_images"]), 1, options["seed"], "baseline", parameters)
        folder = Path(options["output_dir"]) / IMAGES_DIR
        with tqdm(total=call.num_places, desc="drawing", unit="image", disable=None) as bar:
            return draw_images(models, call, folder, on_images=bar.update, on_step=_show_step(bar))

    def _measure(self, images: "_Images", options: dict[str, Any]) -> None:
        import torch

        from training.evaluation.copies import read_resemblances
        from training.evaluation.evaluate import Measured, evaluate, evaluate_kinds, write_report
        from training.evaluation.figures import table, table_by_kind

        torch.set_num_threads(settings.TORCH_NUM_THREADS)
        protocol = _protocol(options)
        pipeline, memory = (images.models.generator.pipeline, images.models.memory) if images.models else (None, None)
        copies = read_resemblances(images.files, images.real, memory)
        measured = Measured.of(images.real, images.generated, pipeline, protocol, copies)
        figures, by_kind = evaluate(measured, protocol), evaluate_kinds(measured, protocol)
        folder = Path(options["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder, figures, by_kind, measured, protocol, facts=images.facts, warn=self.stderr.write)
        self.stdout.write(table(figures))
        if by_kind:
            self.stdout.write("\n" + table_by_kind(by_kind))
        self.stderr.write(
            f"\n{len(images.generated)} generated and {len(images.real)} real images; all of it in {folder}"
        )


@dataclass(frozen=True, eq=False)
class _Images:
    """Both sets, and where they come from."""

    real: "ImageSet"
    generated: "ImageSet"
    files: list["GeneratedFile"]  # of the generated ones
    models: "Models | None"  # where they were loaded
    facts: dict[str, Any]  # for the report


@dataclass(frozen=True)
class _Reference:
    """The real images, before they are read: their captions are needed first, their size comes last."""

    rows: "list[Row] | None"  # of --real or --held_out_of; None: phantoms
    source: dict[str, Any]  # for the report: where they are from
    num_images: int
    seed: int

    @classmethod
    def read(cls, options: dict[str, Any]) -> "_Reference":
        csv, run, num_images, seed = (options[name] for name in ("real", "held_out_of", "num_real", "seed"))
        if run is not None:
            return cls._held_out(run, num_images, seed)
        if csv is None:
            return cls(None, {"what": "phantoms of held-out seeds", "seed": seed}, num_images, seed)
        from training.finetuning.dataset import DatasetError, load_dataset

        try:
            rows, _ = load_dataset(csv, skip_bad_rows=options["skip_bad_rows"], max_rows=num_images, seed=seed)
        except DatasetError as error:
            raise CommandError(f"--real: {error}") from error
        source = {"what": "dataset CSV", "name": csv.name, "sha256": file_sha256(csv)}
        return cls(rows, source, len(rows), seed)

    @classmethod
    def _held_out(cls, run: Path, num_images: int, seed: int) -> "_Reference":
        import numpy as np

        from training.evaluation.held_out import held_out_rows

        rows = held_out_rows(run)
        chosen = np.random.default_rng(seed).permutation(len(rows))[:num_images]
        rows = [rows[place] for place in sorted(chosen)]
        return cls(rows, {"what": "held out by a training run", "run": run.resolve().name}, len(rows), seed)

    def check_unseen(self, models: "Models | None") -> None:
        """Refuse images that the generator was trained on, where its memory index can tell."""
        from training.evaluation.images import EvaluationError

        if self.rows is None or models is None or models.memory is None:
            return
        seen = [row for row in self.rows if row.image_sha256 in set(models.memory.sha256s)]
        if seen:
            raise EvaluationError(
                f"{models.name} was trained on {len(seen)} of the {len(self.rows)} reference images, the first in "
                f"line {seen[0].line}. Give images that it has not seen: --held_out_of RUN, where --held_out_share "
                "kept some, or another --real CSV."
            )

    def captions(self, num_images: int) -> tuple[str, ...]:
        """What to draw: captions of the rows, or of phantoms of their own."""
        from training.evaluation.images import choose_captions, phantom_captions

        if self.rows is None:
            return phantom_captions(num_images, seed=self.seed)
        return choose_captions([row.text for row in self.rows], num_images, seed=self.seed)

    def sets_with(self, files: list["GeneratedFile"]) -> tuple["ImageSet", "ImageSet"]:
        """Real and generated images, the real ones at the generated ones' size."""
        from training.evaluation.images import EvaluationError, draw_phantoms, read_generated, read_reference

        if self.rows is None and not all(file.is_phantom for file in files):
            raise EvaluationError("These images are not phantoms. Give real images to hold them against: --real CSV.")
        generated = read_generated(files)
        size = tuple(generated.pixels.shape[2:])
        if self.rows is None:
            return draw_phantoms(self.num_images, seed=self.seed, size=size), generated
        return read_reference(self.rows, size=size), generated

    def facts(self) -> dict[str, Any]:
        return {"reference": self.source}


# --- flags ---


def _add_set_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--generated", type=Path, help="folder of generated images with sidecars: nothing is drawn")
    parser.add_argument(
        "--real",
        type=Path,
        help="dataset CSV (path,Text,modality and, for splits by patient, group) of images the generator was not "
        "trained on; default for a generator of phantoms: phantoms of held-out seeds",
    )
    parser.add_argument(
        "--held_out_of",
        type=Path,
        metavar="RUN",
        help="instead of --real: run directory of manage.py finetune; what its --held_out_share kept from training",
    )
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out rows of --real that cannot be used")
    parser.add_argument("--num_images", type=int, default=100, help="images to draw (default %(default)s)")
    parser.add_argument("--num_real", type=int, default=400, help="real images at most (default %(default)s)")
    parser.add_argument("--output_dir", default="generated_evaluation", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of captions, noise, splits and bootstraps (default 0)")


def _add_measuring_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--encoder", help="timm network to take features with, instead of medsyn-encoder")
    parser.add_argument("--encoder_weights", type=Path, help="its weights: safetensors or a PyTorch state dict")
    parser.add_argument("--inception_weights", type=Path, help="torchvision's Inception v3 state dict")
    parser.add_argument("--k", type=int, default=5, help="neighbours of density and coverage (default 5)")


def _check(options: dict[str, Any]) -> None:
    """Refuse what can be refused without loading anything."""
    from training.evaluation.evaluate import MIN_IMAGES

    check_whole("--num_images", options["num_images"], MIN_IMAGES, 1_000_000)
    check_whole("--num_real", options["num_real"], 2 * MIN_IMAGES, 1_000_000)
    check_whole("--seed", options["seed"], 0, MAX_SEED)
    check_whole("--k", options["k"], 1, 100)
    if options["real"] is not None and options["held_out_of"] is not None:
        raise CommandError("--real and --held_out_of both name the real images: leave one out.")
    if (options["encoder"] is None) != (options["encoder_weights"] is None):
        raise CommandError("--encoder and --encoder_weights belong together: the network's name, and its weights.")
    for flag in ("generated", "inception_weights", "encoder_weights"):
        if options[flag] is not None and not options[flag].exists():
            raise CommandError(f"--{flag}: there is no {options[flag]}.")


def _names_model(options: dict[str, Any]) -> bool:
    if options["release"]:
        raise CommandError("--release draws; with --generated name the text encoder's model by --pretrained_model.")
    return bool(options["pretrained_model"] or options["model_used"] or options["use_pretrained_only"])


def _as_recommended(models: "Models", options: dict[str, Any]) -> dict[str, Any]:
    """The options with the steps and guidance that the model's maker recommends, where no flag names them."""
    recommended = models.generator.pipeline.recommended_sampling
    return options | {name: value for name, value in recommended.items() if options[name] is None}


def _protocol(options: dict[str, Any]) -> "Protocol":
    from training.evaluation.evaluate import Protocol
    from training.evaluation.features import medsyn_encoder, timm_encoder

    if options["encoder"]:
        encoder = timm_encoder(options["encoder"], options["encoder_weights"])
    else:
        encoder = medsyn_encoder()
    return Protocol(encoder, options["k"], options["seed"], options["inception_weights"])


@contextmanager
def _evaluation_errors() -> Iterator[None]:
    """What cannot be evaluated is said in one line, not in a traceback."""
    from training.evaluation.images import EvaluationError

    try:
        yield
    except EvaluationError as error:
        raise CommandError(str(error)) from error


def _show_step(bar: tqdm) -> Callable[[int, int], None]:
    return lambda done, total: bar.set_postfix_str(f"step {done}/{total}")


def _facts(files: list["GeneratedFile"], options: dict[str, Any]) -> dict[str, Any]:
    """Who drew the images and how, from their sidecars: true of drawn and of given ones."""
    weights = {role: sha for file in files for role, sha in file.weights_sha256.items()}
    drawn_by = sorted({(file.model, file.weights_sha256.get("generator", "")) for file in files})
    varying = ("batch_seeds", "batch_prompts")
    parameters = {k: v for k, v in files[0].facts.get("parameters", {}).items() if k not in varying}
    return {
        "generators": [{"model": model, "weights_sha256": sha256} for model, sha256 in drawn_by],
        "weights_sha256": weights if len(drawn_by) == 1 else None,
        "mode": sorted({file.facts.get("mode", "baseline") for file in files}),
        "parameters_of_first_image": parameters,
        "generated_folder": options["generated"].name if options["generated"] else IMAGES_DIR,
        "generated_seeds": [min(file.seed for file in files), max(file.seed for file in files)],
    }

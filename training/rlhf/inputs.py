"""All that a run starts from besides its configuration, read from the disk."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from generation.embedded_model import EMBEDDED_MODEL_DIR
from medsyn.artifacts import digest_of, file_sha256
from ratings.csv_schema import RatingsCSVError
from training.rlhf.config import EMBEDDED_GENERATOR, RLHFConfig
from training.rlhf.dataset import RatedImages, load_rated_images, split_images
from training.rlhf.labels import Targets, make_targets
from training.rlhf.splits import Split, SplitError
from training.rlhf.text_features import PromptFeatures, encode_prompts, pipeline_image_size
from training.rlhf.timing import Timing


@dataclass(frozen=True)
class Inputs:
    rated: RatedImages
    targets: Targets
    features: PromptFeatures
    image_size: int  # pixels
    fingerprint: str  # digest of ratings, images, text encoder, given networks and configuration

    @property
    def split(self) -> Split:
        return self.targets.split


def load_inputs(config: RLHFConfig, options: argparse.Namespace, timing: Timing) -> Inputs:
    """Read and check everything; raises RatingsCSVError, TextEncoderError or FileNotFoundError."""
    generator = _generator(config, options)
    image_size = min(config.synthetic_system.image_size[0], pipeline_image_size(generator) or 1 << 30)
    ratings_file = Path(config.data.ratings_file)
    with timing.of("read"):
        rated = load_rated_images(
            ratings_file, image_size=image_size, settings=config.raters, num_workers=config.data.num_workers
        )
        targets = _targets(config, rated, ratings_file, begins_anew=options.selector_checkpoint is None)
    with timing.of("features"):
        features = encode_prompts(config.model_paths.med_text_encoder or generator, rated.prompts)
    fingerprint = _fingerprint(config, options, rated, features)
    return Inputs(rated, targets, features, image_size, fingerprint)


def _generator(config: RLHFConfig, options: argparse.Namespace) -> Path:
    """The folder of the pipeline whose text encoder the policy reads."""
    if options.pipeline is None and config.model_paths.stable_diffusion == EMBEDDED_GENERATOR:
        return EMBEDDED_MODEL_DIR
    return options.pipeline or Path(config.model_paths.stable_diffusion)


def _targets(config: RLHFConfig, rated: RatedImages, ratings_file: Path, *, begins_anew: bool) -> Targets:
    """``begins_anew``: without a given selector, which may have learnt from these very images."""
    try:
        split = split_images(rated, seed=config.training.seed)
    except SplitError as error:
        raise RatingsCSVError(str(ratings_file), [str(error)]) from None
    return make_targets(
        rated,
        split,
        expert_weights=config.raters.expert_weights,
        image_prior=config.raters.image_prior and begins_anew,
        hold_out_raters=config.training.early_stopping_patience > 0,
        seed=config.training.seed,
    )


def _fingerprint(
    config: RLHFConfig, options: argparse.Namespace, rated: RatedImages, features: PromptFeatures
) -> str:
    data = replace(config.data, num_workers=0)  # how many threads read changes nothing
    return digest_of(
        {
            "config": replace(config, data=data).to_dict(),
            "items": list(zip(rated.image_ids, rated.prompt_index.tolist(), strict=True)),
            "groups": rated.groups.tolist(),
            "known": rated.known.tolist(),
            "prompts": rated.prompts,
            "ratings": [rated.item_of_rating.tolist(), rated.grades.tolist(), rated.raters.tolist()],
            "text_encoder": features.encoder_sha256,
            "given": [
                path and file_sha256(path) for path in (options.selector_checkpoint, options.policy_checkpoint)
            ],
        }
    )

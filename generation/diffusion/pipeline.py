"""MedSynPipeline: prompt -> BERT -> projection -> UNet -> VAE -> image, with everything it needs in one folder."""

from collections.abc import Sequence

from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import BertModel, PreTrainedTokenizerFast

from generation.diffusion.conditioning import Conditioning, ConditionProjection, TextFeatures
from generation.diffusion.text_to_image import TextToImage, scale_factor_of


class MedSynPipeline(TextToImage, DiffusionPipeline):
    """Text-to-image latent diffusion for medical images of several modalities.

    The parts decide every size: image size, downsampling of the VAE, tokens, widths and prediction type are read
    from their configs, so medsyn-tiny and the full model are the same class. ``recommended_steps``,
    ``recommended_guidance`` and ``recommended_guidance_interval`` are what the model's maker measured to be best;
    nothing applies them by itself.
    ``draws_phantoms`` says that the model has seen procedural phantoms only; fine-tuning on phantoms keeps the mark.
    """

    model_cpu_offload_seq = "text_encoder->conditioner->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: BertModel,
        tokenizer: PreTrainedTokenizerFast,
        conditioner: ConditionProjection,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        recommended_steps: int | None = None,
        recommended_guidance: float | None = None,
        recommended_guidance_interval: list[float] | None = None,
        draws_phantoms: bool = False,
    ):
        super().__init__()
        self._check_widths(text_encoder, conditioner, unet, vae)
        # Only the token features are used. Loaders invent a random pooler where the file has none, and a model must
        # not change by being saved and loaded.
        text_encoder.pooler = None
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            conditioner=conditioner,
            unet=unet,
            scheduler=scheduler,
        )
        self.vae_scale_factor = scale_factor_of(vae.config.block_out_channels)
        self.register_to_config(
            recommended_steps=recommended_steps,
            recommended_guidance=recommended_guidance,
            recommended_guidance_interval=recommended_guidance_interval,
            draws_phantoms=draws_phantoms,
        )

    @staticmethod
    def _check_widths(
        text_encoder: BertModel, conditioner: ConditionProjection, unet: UNet2DConditionModel, vae: AutoencoderKL
    ) -> None:
        """Parts of different models do not fit together: say which before the first matrix product does."""
        pairs = {
            "text_encoder.hidden_size and conditioner.text_width": (
                text_encoder.config.hidden_size,
                conditioner.config.text_width,
            ),
            "conditioner.condition_width and unet.cross_attention_dim": (
                conditioner.config.condition_width,
                unet.config.cross_attention_dim,
            ),
            "vae.latent_channels and unet.in_channels": (vae.config.latent_channels, unet.config.in_channels),
        }
        for names, (first, second) in pairs.items():
            if first != second:
                raise ValueError(f"The parts of the pipeline do not fit together: {names} are {first} and {second}.")

    @property
    def max_tokens(self) -> int:
        """Longest text the encoder takes, in tokens, [CLS] and [SEP] counted."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @property
    def trainable_parts(self) -> dict[str, nn.Module]:
        """UNet and conditioner, by folder."""
        return {"unet": self.unet, "conditioner": self.conditioner}

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and mask (B, L) bool, padded to the longest; cuts texts that are too long, and says so."""
        for text in texts:
            self._warn_if_cut(text)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def encode_text(self, prompts: Sequence[str]) -> TextFeatures:
        """Raw features of the text encoder, (B, L, D_text) and (B, L). Gradients flow where they are enabled."""
        ids, mask = self.tokenize(prompts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextFeatures(hidden, mask)

    def modality_id(self, modality: str) -> int:
        """Row of the modality embedding; raises ValueError for a modality that the model was not built for."""
        return self.conditioner.modality_id(modality)

    def condition(self, text: TextFeatures, modality_ids: Tensor) -> Conditioning:
        """The trainable part: tokens (B, L, D), mask (B, L), and pooled (B, D) if the UNet has a class embedding."""
        conditioning = self.conditioner(text, modality_ids)
        if self.unet.config.class_embed_type is None:
            return Conditioning(conditioning.tokens, conditioning.mask, None)
        return conditioning

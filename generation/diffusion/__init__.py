"""The generator: phantoms to train it on, its parts, its pipeline and its samplers. Knows no Django.

Shape legend: B batch, C channels, H W pixels, h w latent positions, L tokens, D width, T timesteps.
Images are float32 (B, 3, H, W) in [0, 1] in torch and uint8 (H, W, 3) in numpy.
"""

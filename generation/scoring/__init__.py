"""The networks that judge images: selector (is it good?) and policy (does it show what the prompt says?). [pure]

Shapes: B batch, H W pixels, N image tokens, L text tokens, D width, M quality metrics, K heads of the selector.
Images are float32 (B, 3, H, W) in [0, 1] everywhere at the boundary.
"""

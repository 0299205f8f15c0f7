"""How good a generator is, against real images it has not seen: `manage.py evaluate_generator`. [pure]

Shapes: N generated images, M real ones, D width of a frozen encoder's features, H W pixels, S strengths of a
degradation. Images are uint8 (N, 3, H, W), features float64 (N, D). "Real" means the reference set, which for a
generator of phantoms holds phantoms.
"""

"""Ratings CSV -> selector + policy. Knows no Django; the only way ratings come in is ratings.csv_schema. [pure]

Shapes: B batch, N images, R ratings, K heads, L text tokens, D width. Grades are 1 poor, 2 acceptable, 3 excellent.
"""

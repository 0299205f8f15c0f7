"""How far readers agree, with whom, and what their ratings say about two groups of images. numpy and scipy.special.

Shape legend: N images, J readers, R ratings, Q grades, K distinct rows of a table, B resamples. Grades are the
integers 1 to Q (1 poor, 2 acceptable, 3 excellent) and 0 where a reader did not rate the image. Every figure is an
`Estimate`; where the data cannot give it, it is None and ``reason`` says in a sentence why. Nothing here knows
Django. [pure]
"""

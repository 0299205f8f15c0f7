"""The interval of a share, for everything that counts. Pure."""

from math import sqrt

from scipy.special import ndtri


def wilson(num: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of Wilson's score interval for the share ``num / total`` of independent trials (Wilson 1927, JASA 22:209).

    ``confidence`` above 0 and below 1. At 0 and 1 the ends are these numbers exactly. Raises ValueError where
    ``num`` of ``total`` is no share.
    """
    if not 0 <= num <= total or total == 0:
        raise ValueError(f"{num} of {total} is no share.")
    z = float(ndtri((1 + confidence) / 2))
    share = num / total
    scale = 2 * (total + z**2)
    centre = (2 * total * share + z**2) / scale
    reach = z / scale * sqrt(4 * total * share * (1 - share) + z**2)
    return 0.0 if num == 0 else centre - reach, 1.0 if num == total else centre + reach

"""A share as people read it. Pure."""

PERCENT_SIGN = "\N{NO-BREAK SPACE}%"  # ISO 80000-1: a space before the sign, where a line must not end


def percent(share: float, decimals: int | None = None, *, is_signed: bool = False) -> str:
    """``share`` (1 is the whole) as text: 0.1 is "10 %", 0.125 is "12.5 %".

    decimals: how many are written; None: those that there are, for a share that somebody stated: a promise of
    99.995 % is not one of 100 %. is_signed: with a plus sign where the share is above 0.
    """
    sign = "+" if is_signed else ""
    if decimals is None:
        return f"{100 * share:{sign}.10g}{PERCENT_SIGN}"
    return f"{100 * share:{sign}.{decimals}f}{PERCENT_SIGN}"

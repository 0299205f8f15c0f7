"""A link that lets somebody in does not stand in the log: whoever reads the log could use it first."""

import logging
import re

_LINK = re.compile(r"(/(?:join|password/new)/)[^/\s?#]+")


class HideLinks(logging.Filter):
    """Puts ``...`` in the place of the tokens of links.

    Django writes the address of every refused request into the log. A form that is not filled in right, or a missing
    cookie, is a refusal too, and the link still works afterwards.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        hidden = _LINK.sub(r"\1...", text)
        if hidden != text:
            record.msg, record.args = hidden, ()
        return True

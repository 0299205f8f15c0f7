"""Celery's side of ratings: what is looked at by the clock."""

from medsyn.celery import app


@app.task(name="ratings.watch_certificates")
def watch_certificates() -> int:
    """Show every certificate's drift monitor the ratings since; returns how many certificates were revoked."""
    from ratings.services.certification import observe_all

    return sum(not certificate.is_valid for certificate in observe_all())

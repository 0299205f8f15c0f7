"""Triggers that keep calibration apart from learning, whoever writes: an image that was drawn for a calibration plan
can be in no other study and no other role, no place for it is ever trained on, nobody is shown it with a grade, the
draw does not change, and nothing that a certificate rests on goes: neither draw, place and grade, nor the record of
tests and of what the drift monitor saw. What ended a certificate stays as it was written (docs/decisions/0012).

They read three tables: ratings_calibrationimage and, for grades, ratings_assignment beside the one that they are on.
SQLite forgets a table's triggers when it is rebuilt, and refuses to rebuild one that another table's trigger reads: a
migration that rebuilds one of these tables calls ``remove`` before and ``install`` after. tests/ratings/
test_calibration.py fails where a trigger is missing, and no plan is made without them.
"""

_MIXED = "This image was drawn for calibration: it belongs to one study, and nothing is ever trained on it."
_FIXED = "Which images were drawn for calibration does not change."
_KEPT = (
    "A certificate rests on this row of its calibration: nothing of it is deleted. Close the study, declare the "
    "rating void, or revoke the certificate."
)
_FINAL = "A revocation is final: when and why a certificate ended stays as it was recorded. Rate a new draw."
_STUDY_IMAGE = "c.study_id <> NEW.study_id OR NEW.role <> 'calibration'"
_ASSIGNMENT = "c.study_id <> NEW.study_id OR NEW.kind NOT IN ('calibration', 'repeat')"
_DRAWN = "EXISTS (SELECT 1 FROM ratings_calibrationimage c WHERE c.image_id = NEW.image_id AND ({}))"
_WAS_DRAWN = "EXISTS (SELECT 1 FROM ratings_calibrationimage c WHERE c.image_id = OLD.image_id)"
_WAS_RATED = (
    "EXISTS (SELECT 1 FROM ratings_assignment a JOIN ratings_calibrationimage c ON c.image_id = a.image_id "
    "WHERE a.id = OLD.assignment_id)"
)
_LEAVES = f"OLD.image_id <> NEW.image_id AND {_WAS_DRAWN}"  # a row that is moved away is one row less
_MOVED = (
    "OLD.image_id <> NEW.image_id OR OLD.study_id <> NEW.study_id OR OLD.plan_id <> NEW.plan_id "
    "OR OLD.position <> NEW.position"
)
_REVIVED = (  # IS NULL by itself: NULL <> anything is NULL, which stops no row
    "OLD.revoked_at IS NOT NULL AND (NEW.revoked_at IS NULL OR OLD.revoked_at <> NEW.revoked_at "
    "OR OLD.revocation <> NEW.revocation)"
)
# (name, event, table, which rows it stops, what it says)
GUARDS = (
    ("calibration_study_image_new", "INSERT", "ratings_studyimage", _DRAWN.format(_STUDY_IMAGE), _MIXED),
    ("calibration_study_image_change", "UPDATE", "ratings_studyimage", _DRAWN.format(_STUDY_IMAGE), _MIXED),
    ("calibration_study_image_move", "UPDATE", "ratings_studyimage", _LEAVES, _KEPT),
    ("calibration_study_image_delete", "DELETE", "ratings_studyimage", _WAS_DRAWN, _KEPT),
    ("calibration_place_new", "INSERT", "ratings_assignment", _DRAWN.format(_ASSIGNMENT), _MIXED),
    ("calibration_place_change", "UPDATE", "ratings_assignment", _DRAWN.format(_ASSIGNMENT), _MIXED),
    ("calibration_place_move", "UPDATE", "ratings_assignment", _LEAVES, _KEPT),
    ("calibration_place_delete", "DELETE", "ratings_assignment", _WAS_DRAWN, _KEPT),
    (
        "calibration_rating_move",
        "UPDATE",
        "ratings_rating",
        f"OLD.assignment_id <> NEW.assignment_id AND {_WAS_RATED}",
        _KEPT,
    ),
    ("calibration_rating_delete", "DELETE", "ratings_rating", _WAS_RATED, _KEPT),
    ("calibration_gold_new", "INSERT", "ratings_goldgrade", _DRAWN.format("TRUE"), _MIXED),
    ("calibration_gold_change", "UPDATE", "ratings_goldgrade", _DRAWN.format("TRUE"), _MIXED),
    ("calibration_anchor_new", "INSERT", "ratings_anchor", _DRAWN.format("TRUE"), _MIXED),
    ("calibration_anchor_change", "UPDATE", "ratings_anchor", _DRAWN.format("TRUE"), _MIXED),
    ("calibration_draw_change", "UPDATE", "ratings_calibrationimage", _MOVED, _FIXED),
    ("calibration_draw_delete", "DELETE", "ratings_calibrationimage", "TRUE", _KEPT),
    # A refusal that is gone is a test that can be repeated; a served job that is gone, one not to be watched.
    ("calibration_test_delete", "DELETE", "generation_certificate", "TRUE", _KEPT),
    ("calibration_revocation_change", "UPDATE", "generation_certificate", _REVIVED, _FINAL),
    ("calibration_observation_delete", "DELETE", "generation_certificateobservation", "TRUE", _KEPT),
    ("calibration_served_delete", "DELETE", "generation_certifiedjob", "TRUE", _KEPT),
)


def install(connection) -> None:
    """Create the triggers, in place of those that are there."""
    remove(connection)
    make = {"sqlite": _sqlite, "postgresql": _postgresql}[connection.vendor]
    with connection.cursor() as cursor:
        for guard in GUARDS:
            for statement in make(*guard):
                cursor.execute(statement)


def remove(connection) -> None:
    """Drop those triggers that are there."""
    with connection.cursor() as cursor:
        for name, _, table, _, _ in GUARDS:
            if connection.vendor == "postgresql":
                cursor.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
                cursor.execute(f"DROP FUNCTION IF EXISTS {name}()")
            else:
                cursor.execute(f"DROP TRIGGER IF EXISTS {name}")


def missing(connection) -> list[str]:
    """Names of the triggers that are not there."""
    asked = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(asked)
        found = {name for (name,) in cursor.fetchall()}
    return [name for name, *_ in GUARDS if name not in found]


def _sqlite(name: str, event: str, table: str, stops: str, message: str) -> list[str]:
    return [
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN {stops} "
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    ]


def _postgresql(name: str, event: str, table: str, stops: str, message: str) -> list[str]:
    # check_violation makes it an IntegrityError, as RAISE(ABORT) is in SQLite. What it returns goes on; NULL, which
    # NEW is of a deletion, would drop the deletion without a word.
    row = "OLD" if event == "DELETE" else "NEW"
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {stops} THEN "
        f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation'; END IF; RETURN {row}; END $$",
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]

"""For every unsafe request of the matrix a body with which it would succeed, so that a missing guard shows."""

import time
import uuid
from collections.abc import Callable

from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value

from tests.access.world import TOTP_SECRET, World
from tests.factories import PASSWORD
from tests.generation.test_views import FORM as GENERATE
from tests.training.test_new_run_pages import form_data
from training.forms import FinetuneForm, RLHFRunForm

NEW_PASSWORD = "seventeen-quiet-lanterns"
PROMPT = "Chest X-ray: normal lung fields"


def bodies(world: World) -> dict[tuple, dict | Callable[[], dict]]:
    """(method, route) -> body, or what makes it when it is sent; without an entry the request has none.

    (method, route, "other") -> the body for the other study, where it names something of the study.
    """
    return {
        **_signing_in(),
        **_people(world),
        **_pages(world),
        **_studies_api(world),
        **_training(world),
        **_generation(world),
        **_certificates(world),
        **_reading_batches(world),
    }


def _code() -> dict:
    """The code of the second factor that holds now (RFC 6238)."""
    return {"code": format_hotp_value(hotp_value(TOTP_SECRET, int(time.time()) // 30))}


def _signing_in() -> dict[tuple, dict | Callable[[], dict]]:
    new = {"new_password1": NEW_PASSWORD, "new_password2": NEW_PASSWORD}
    return {
        ("post", "/login/"): {"username": "reader", "password": PASSWORD},
        ("post", "/login/confirm/"): {"password": PASSWORD},
        ("post", "/login/confirm/code/"): _code,
        ("post", "/second-step/set-up/"): _code,
        ("post", "/password/"): {"old_password": PASSWORD, **new},
        ("post", "/password/forgotten/"): {"email": "fellow@hospital.example"},
        ("post", "/password/new/<token>/"): new,
        ("post", "/join/<token>/"): {"username": "new", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD},
    }


def _people(world: World) -> dict[tuple, dict]:
    level = {"expert_level": 3, "verified_by": world.people["admin"].pk}
    return {
        ("post", "/people/invite/"): {"email": "other@hospital.example", "role": "clinician", **level},
        ("post", "/people/<pk>/role/"): {"role": "owner"},
        ("post", "/people/<pk>/level/"): level,
        ("post", "/people/<pk>/state/"): {"close-reason": "Left the hospital"},
        ("post", "/people/<pk>/second-step/"): {"reset-reason": "Lost telephone"},
    }


def _pages(world: World) -> dict[tuple, dict]:
    study, image = str(world.study.public_id), str(world.values["images"])
    return {
        ("post", "/studies/new/"): {"name": "New", "max_images": 2, "with_rejected": "on"},
        ("post", "/studies/<study_id>/readers/"): {"reader": world.people["newcomer"].pk, "expert_level": 2},
        ("post", "/studies/<study_id>/images/"): {"images": [image], "grade": "2"},
        ("post", "/studies/<study_id>/images/add/"): {"max_images": 2, "with_rejected": "on"},
        ("post", "/studies/<study_id>/places/"): {"reader": world.people["reader"].pk},
        ("post", "/studies/<study_id>/protocol/"): {"scale_3": "Sharp", "reason": "Readers asked"},
        ("post", "/images/<public_id>/gold/"): {"grade": "2"},
        ("post", "/data/<pk>/void/"): {"reason": "Interrupted"},
        ("post", "/data/<pk>/restore/"): {"reason": "It was meant"},
        ("post", "/studies/<study_id>/state/"): {"open": "0"},
        ("post", "/data/exports/"): {"study": study},
    }


def _studies_api(world: World) -> dict[tuple, dict]:
    image = str(world.values["image of no study"])
    assignment = "/api/assignments/<assignment_id>/"
    study = "/api/studies/<study_id>/"
    return {
        ("post", "/api/studies/"): {"name": "New", "images": [image]},
        ("patch", study): {"description": "Changed"},
        ("post", f"{study}images/"): {"images": [image]},
        ("post", f"{study}memberships/"): {"reader": "newcomer", "expert_level": 1},
        ("patch", f"{study}memberships/<pk>/"): {"expert_level": 1},
        ("patch", f"{study}protocol/"): {"scale_texts": {"3": "Sharp"}, "reason": "Readers asked"},
        ("post", f"{study}release/"): {"reader": "reader"},
        ("post", f"{study}release/", "other"): {"reader": "other_reader"},
        ("post", "/api/gold/"): {"image": image, "grade": 2},
        ("post", "/api/ratings/<pk>/void/"): {"reason": "Interrupted"},
        ("post", "/api/ratings/<pk>/restore/"): {"reason": "It was meant"},
        ("post", f"{study}undo/"): {"client_uuid": str(uuid.uuid4())},
        ("post", f"{assignment}rating/"): {"value": 3, "client_uuid": str(uuid.uuid4()), "revision": 1},
        ("post", f"{assignment}remarks/"): {"defects": ["blur"], "client_uuid": str(uuid.uuid4()), "revision": 1},
        ("post", "/api/exports/"): {"study": str(world.study.public_id)},
    }


def _training(world: World) -> dict[tuple, dict]:
    study, dataset = str(world.study.public_id), str(world.values["dataset"])
    return {
        ("post", "/training/cost/<purpose>/"): form_data(RLHFRunForm(), study=study),
        ("post", "/training/new/rlhf/"): form_data(RLHFRunForm(), study=study),
        ("post", "/training/new/finetune/"): form_data(FinetuneForm(), train_data_dir=dataset, max_train_steps="5"),
        ("post", "/training/<pk>/release/"): {"quality_threshold": "0.5", "name": "June"},
        ("post", "/api/training/runs/rlhf/cost/"): {"study": study},
        ("post", "/api/training/runs/finetune/cost/"): {"train_data_dir": dataset},
        ("post", "/api/training/runs/rlhf/"): {"study": study, "generator": str(world.values["pipeline"])},
        ("post", "/api/training/runs/finetune/"): {"train_data_dir": dataset, "flags": {"max_train_steps": 5}},
        ("post", "/api/training/runs/<pk>/release/"): {"checkpoint": "epoch_5", "name": "June"},
    }


def _reading_batches(world: World) -> dict[tuple, dict]:
    asked = {"jobs": [world.values["generate"]], "num_images": 1, "random_share": 1}
    return {
        ("post", "/studies/<study_id>/batches/"): asked | {"with_rejected": "on"},
        ("post", "/api/studies/<study_id>/reading-batches/"): asked,
    }


def _certificates(world: World) -> dict[tuple, dict]:
    drawn_from = str(world.values["job to calibrate with"])
    plan = {"name": "Drawn", "release": world.values["releases/pk"], "jobs": drawn_from}
    return {
        ("post", "/certificates/plan/"): plan | {"num_images": 1, "alpha": 0.1, "delta": 0.1},
        ("post", "/certificates/<pk>/watch/"): {"name": "Watched", "num_images": 1},
        ("post", "/certificates/<pk>/revoke/"): {"reason": "Another scanner"},
    }


def _generation(world: World) -> dict[tuple, dict]:
    sides = {"left": "", "right": world.values["releases/pk"]}
    comparison = {"prompts": PROMPT, "num_images": 1, "seed": 1, "num_inference_steps": 4, "guidance_scale": 2}
    return {
        ("post", "/generate/"): GENERATE,
        ("post", "/api/generation-jobs/"): {"prompts": [PROMPT]},
        ("post", "/releases/compare/"): sides | comparison,
        ("post", "/api/release-comparisons/"): {"left": None, "right": world.values["releases/digest"]},
    }

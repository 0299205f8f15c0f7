"""Django's administration: for administrators only, and what is evidence cannot be changed there."""

import pytest

from tests.access.addresses import Address, addresses, admin_models, is_of_admin_model
from tests.access.asking import Asking
from tests.access.headers import header_faults
from tests.access.world import ROLES

pytestmark = pytest.mark.django_db
# What an administrator may do with the rows of a model beside looking at them; of all others, nothing.
MAY = {
    "authtoken/tokenproxy": {"add", "change", "delete"},
    "ratings/membership": {"change"},
    "ratings/study": {"change"},
}
POSTING = ("anonymous", "owner", "admin", "admin_no_totp")  # who is not let in to look is not let in to write
OF_MODELS = sorted((address for address in addresses() if is_of_admin_model(address)), key=lambda one: one.route)


def url_and_model(address: Address, asking: Asking) -> tuple[str, str]:
    model = "/".join(address.route.strip("/").split("/")[1:3])
    values = asking.world.values
    return address.filled({**values, "object_id": values[f"admin/{model}"], "id": values["user/id"]}), model


def expected_of_admin(address: Address, model: str, method: str, has_row: bool) -> set[str]:
    """What an administrator gets; a row that is not there leads back to the overview."""
    action = address.name.rpartition("_")[2] if address.name else "redirect"
    if action in ("changelist", "history", "redirect"):
        return {"ok", "done"}
    if action == "change" and method == "get":
        return {"ok"} if has_row else {"done"}
    if action not in MAY.get(model, ()):
        return {"refused"} if has_row or action == "add" else {"refused", "done"}
    return {"ok", "done"}


@pytest.mark.parametrize("address", OF_MODELS, ids=lambda address: address.route)
def test_rows_are_for_administrators_and_evidence_is_for_looking_at(asking, address):
    url, model = url_and_model(address, asking)
    has_row = asking.world.values[f"admin/{model}"] != "0"
    for role in ROLES:
        for method in ("get", "post") if role in POSTING else ("get",):
            answer = asking.ask(role, method, url)
            if role == "admin":
                assert answer.word in expected_of_admin(address, model, method, has_row), (method, url)
            else:
                assert answer.word == ("set-up" if role == "admin_no_totp" else "sign-in"), (role, method, url)
            assert not answer.changed or (role == "admin" and method == "post" and model in MAY), (role, method, url)
            assert not list(header_faults(url, answer.response)), (role, url)


def test_the_table_names_models_that_there_are():
    assert MAY.keys() <= admin_models().keys()

"""Signing in and out, and one's own password."""

from tests.factories import PASSWORD

NEW = "another-horse-staple"


def test_a_person_changes_their_password_and_only_with_the_old_one(client, bob):
    client.login(username="bob", password=PASSWORD)
    wrong = {"old_password": "guessed", "new_password1": NEW, "new_password2": NEW}
    assert b"id_old_password" in client.post("/password/", wrong).content
    bob.refresh_from_db()
    assert bob.check_password(PASSWORD)
    reply = client.post("/password/", {**wrong, "old_password": PASSWORD}, follow=True)
    assert "Your password is changed." in reply.content.decode()
    bob.refresh_from_db()
    assert bob.check_password(NEW)


def test_nobody_changes_a_password_without_signing_in(client, db):
    reply = client.get("/password/")
    assert reply.status_code == 302 and reply.url.startswith("/login/")


def test_the_menu_of_a_person_leads_there(client, bob):
    client.force_login(bob)
    assert "/password/" in client.get("/studies/").content.decode()


def test_signing_out_is_a_post(client, bob):
    client.force_login(bob)
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").status_code == 302
    assert client.get("/studies/").status_code == 302

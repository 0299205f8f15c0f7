"""The vocabulary of SPEC section 1 and the grammar of prompts."""

import pytest

from medsyn.modalities import (
    ALL_KINDS,
    KINDS,
    MODALITIES,
    PromptError,
    UnknownModality,
    canonical_modality,
    kind_from_name,
    parse_prompt,
)

# Kind, modality, accepted spellings: the table of the specification, written out.
TABLE = [
    ("OCT", "OCT", ["OCT", "oct"]),
    ("Fundus", "Fundus", ["Fundus", "FUNDUS"]),
    ("Chest X-ray", "X-Ray", ["Chest X-Ray", "chest x-ray", "CXR", "Chest Xray", "chest_xray"]),
    ("Chest CT", "CT", ["Chest CT", "ChestCT", "chest_ct"]),
    ("Brain MRI", "MRI", ["Brain MRI", "BrainMRI", "brain-mri"]),
    ("Breast MRI", "MRI", ["Breast MRI", "BreastMRI"]),
    ("X-ray", "X-Ray", ["X-ray", "X-Ray", "XRay"]),
    ("CT", "CT", ["CT", " ct "]),
    ("MRI", "MRI", ["MRI"]),
]


@pytest.mark.parametrize(("prefix", "modality", "spellings"), TABLE)
def test_every_spelling_leads_to_the_canonical_one(prefix, modality, spellings):
    for spelling in spellings:
        assert kind_from_name(spelling).prefix == prefix
        assert canonical_modality(spelling) == modality
        parsed = parse_prompt(f"{spelling}:  a   b\nc ")
        assert parsed.text == f"{prefix}: a b c"
        assert parsed.modality == modality


def test_there_are_six_kinds_and_five_modalities():
    assert [kind.prefix for kind in KINDS] == [row[0] for row in TABLE[:6]]
    assert sorted(MODALITIES) == sorted({row[1] for row in TABLE})
    assert {kind.prefix for kind in ALL_KINDS} == {row[0] for row in TABLE}
    assert [kind.is_bare for kind in ALL_KINDS] == [False] * 6 + [True] * 3


def test_prefixes_slugs_and_modalities_name_a_kind_again():
    for kind in ALL_KINDS:
        assert kind_from_name(kind.prefix) is kind_from_name(kind.slug) is kind
        assert canonical_modality(kind.modality) == kind.modality
        assert kind.slug.replace("_", "").isalnum() and kind.slug.islower()
    assert len({kind.slug for kind in ALL_KINDS}) == len(ALL_KINDS)


def test_a_description_may_hold_colons():
    parsed = parse_prompt("Chest CT: nodule: 8 mm, right upper lobe")
    assert parsed.kind.prefix == "Chest CT"
    assert parsed.description == "nodule: 8 mm, right upper lobe"
    assert parse_prompt(parsed.text) == parsed


def test_bare_prefixes_take_other_body_parts():
    assert parse_prompt("MRI: lumbar spine, sagittal T2").kind.is_bare


@pytest.mark.parametrize("name", ["", "PET", "Chest", "Ultrasound", "CT MRI", "X"])
def test_an_unknown_modality_is_refused_with_the_list(name):
    with pytest.raises(UnknownModality) as caught:
        canonical_modality(name)
    assert repr(name) in str(caught.value)
    assert all(kind.prefix in str(caught.value) for kind in ALL_KINDS)


@pytest.mark.parametrize(
    "prompt", ["", "a healthy lung", "Lung: a healthy lung", ": a healthy lung", "Chest X-ray", "PET: x"]
)
def test_a_prompt_without_known_prefix_is_refused_with_the_list(prompt):
    with pytest.raises(PromptError) as caught:
        parse_prompt(prompt)
    assert repr(prompt) in str(caught.value)
    assert all(f"{kind.prefix}:" in str(caught.value) for kind in ALL_KINDS)


@pytest.mark.parametrize("prompt", ["OCT:", "OCT:   \n"])
def test_a_prompt_that_describes_nothing_is_refused(prompt):
    with pytest.raises(PromptError, match="describes nothing"):
        parse_prompt(prompt)

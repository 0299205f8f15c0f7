"""Phantoms show what their class says, on the side it says, and their defects weigh what they say."""

import re
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from generation.diffusion.phantoms import (
    DEFECTS,
    FINDINGS,
    NORMAL,
    PhantomClass,
    all_captions,
    caption,
    class_of_caption,
    combined_severity,
    draw,
    other_caption,
    plant_defect,
    random_phantom,
)
from medsyn.modalities import BRAIN_MRI, CHEST_CT, CHEST_XRAY, FUNDUS, KINDS, OCT, parse_prompt

SEEDS = (0, 4096)
WITH_FINDING = [phantom_class for phantom_class in FINDINGS if phantom_class.finding != NORMAL]
ONE_SIDED = [phantom_class for phantom_class in WITH_FINDING if phantom_class.side and phantom_class.kind != FUNDUS]
OTHER_SIDE = {"left": "right", "right": "left"}


def by_name(phantom_class):
    return phantom_class.name


@cache
def pixels_of(phantom_class, seed, size=128):
    """(S, S, 3) float pixels in 0..255."""
    phantom = draw(phantom_class, seed=seed, size=size)
    assert phantom.pixels.dtype == np.uint8 and phantom.defects == () and phantom.severity == 0
    return phantom.pixels.astype(float)


def normal_of(phantom_class):
    """The healthy class of the same kind, eye and sequence."""
    side = phantom_class.side if phantom_class.kind == FUNDUS else ""
    return PhantomClass(phantom_class.kind, NORMAL, side, phantom_class.sequence)


def change(phantom_class, seed, size=128):
    """(S, S) absolute difference that the finding makes to the same anatomy."""
    return np.abs(pixels_of(phantom_class, seed, size) - pixels_of(normal_of(phantom_class), seed, size)).mean(axis=2)


def distance(pixels, others):
    """Root mean square difference in grey levels."""
    return float(np.sqrt(((pixels.astype(float) - others.astype(float)) ** 2).mean()))


# --- catalogue ---


def test_the_catalogue_holds_all_six_kinds_without_repetition():
    assert {phantom_class.kind for phantom_class in FINDINGS} == set(KINDS)
    assert len(set(FINDINGS)) == len(FINDINGS) == len({phantom_class.name for phantom_class in FINDINGS})
    assert 29 <= len(FINDINGS) <= 40
    assert all(normal_of(phantom_class) in FINDINGS for phantom_class in WITH_FINDING)


@pytest.mark.parametrize("phantom_class", [c for c in FINDINGS if c.side], ids=by_name)
def test_what_has_a_side_exists_on_both(phantom_class):
    mirrored = PhantomClass(
        phantom_class.kind, phantom_class.finding, OTHER_SIDE[phantom_class.side], phantom_class.sequence
    )
    assert mirrored in FINDINGS


# --- drawing ---


@pytest.mark.parametrize("phantom_class", FINDINGS, ids=by_name)
def test_a_phantom_follows_from_its_seed(phantom_class):
    first, again = (draw(phantom_class, seed=7, size=64) for _ in range(2))
    another = draw(phantom_class, seed=8, size=64)
    assert np.array_equal(first.pixels, again.pixels) and first.caption == again.caption
    blurred = [gaussian_filter(phantom.pixels.astype(float), (1.5, 1.5, 0)) for phantom in (first, another)]
    assert distance(*blurred) > 3  # more than another grain: the anatomy differs


@pytest.mark.parametrize("size", [64, 128, 192])
@pytest.mark.parametrize("phantom_class", FINDINGS, ids=by_name)
def test_a_phantom_is_an_image_with_light_and_shade(phantom_class, size):
    pixels = pixels_of(phantom_class, 5, size)
    assert pixels.shape == (size, size, 3)
    assert np.percentile(pixels, 99) - np.percentile(pixels, 1) > 100
    assert (pixels == 255).mean() < 0.05
    is_grey = np.ptp(pixels, axis=2).max() == 0
    assert is_grey == (phantom_class.kind != FUNDUS)


@pytest.mark.parametrize("phantom_class", FINDINGS, ids=by_name)
def test_the_size_changes_the_sampling_not_the_content(phantom_class):
    large, small = pixels_of(phantom_class, 5, 192).mean(axis=2), pixels_of(phantom_class, 5, 64).mean(axis=2)
    reduced = large.reshape(64, 3, 64, 3).mean(axis=(1, 3))
    smooth = [gaussian_filter(picture, 0.7) for picture in (reduced, small)]
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("phantom_class", WITH_FINDING, ids=by_name)
def test_a_finding_survives_the_blur_of_a_lossy_autoencoder(phantom_class):
    for seed in SEEDS:
        difference = pixels_of(phantom_class, seed) - pixels_of(normal_of(phantom_class), seed)
        blurred = gaussian_filter(difference.mean(axis=2), 2.0)
        assert np.abs(blurred).max() > 30, f"seed {seed}"


@pytest.mark.parametrize("phantom_class", ONE_SIDED, ids=by_name)
def test_a_lesion_lies_on_the_patients_side(phantom_class):
    """Radiological convention: the patient's right is the left half of the image."""
    for seed in range(5):
        half = change(phantom_class, seed, 64).sum(axis=0)
        left_of_image, right_of_image = half[:32].sum(), half[32:].sum()
        on_side = left_of_image if phantom_class.side == "right" else right_of_image
        assert on_side > 0.97 * (left_of_image + right_of_image), f"seed {seed}"


@pytest.mark.parametrize("phantom_class", [c for c in FINDINGS if c.kind == FUNDUS], ids=by_name)
def test_the_optic_disc_lies_nasally(phantom_class):
    """Seen from in front, the nose is on the right of a right eye."""
    for seed in range(5):
        blue = gaussian_filter(pixels_of(phantom_class, seed, 64)[..., 2], 2.0)  # the pale cup, not yellow exudates
        column = np.unravel_index(blue.argmax(), blue.shape)[1]
        assert (column > 36) if phantom_class.side == "right" else (column < 28), f"seed {seed}"


@pytest.mark.parametrize("kind, rows", [(CHEST_XRAY, slice(78, 88)), (CHEST_CT, slice(50, 60))], ids=["xray", "ct"])
def test_the_heart_lies_on_the_patients_left(kind, rows):
    for seed in SEEDS:
        picture = pixels_of(PhantomClass(kind, NORMAL), seed)[rows].mean(axis=(0, 2))
        assert picture[76:86].mean() > picture[42:52].mean() + 20, f"seed {seed}"


def test_fluid_is_dark_in_t1_and_bright_in_t2():
    for seed in SEEDS:
        for sequence, is_right in (("T1", lambda value: value < 60), ("T2", lambda value: value > 200)):
            phantom_class = PhantomClass(BRAIN_MRI, "hydrocephalus", sequence=sequence)
            where = np.zeros((128, 128), bool)
            where[46:56, 50:54] = where[46:56, 74:78] = True  # within the frontal horns
            assert is_right(pixels_of(phantom_class, seed)[where].mean()), (sequence, seed)


def test_glaucoma_widens_the_pale_cup():
    for seed in SEEDS:
        areas = {}
        for finding in (NORMAL, "glaucoma"):
            blue = pixels_of(PhantomClass(FUNDUS, finding, "left"), seed)[..., 2]
            areas[finding] = (blue > 190).sum()
        assert areas["glaucoma"] > 3 * max(1, areas[NORMAL]), f"seed {seed}"


def test_exudates_are_yellow_and_haemorrhages_dark():
    for seed in SEEDS:
        normal = pixels_of(PhantomClass(FUNDUS, NORMAL, "right"), seed)
        for finding, sign in (("exudates", 1), ("haemorrhages", -1)):
            difference = (pixels_of(PhantomClass(FUNDUS, finding, "right"), seed) - normal)[..., 1]  # green
            strongest = difference.ravel()[np.abs(difference).argmax()]
            assert sign * strongest > 40, (finding, seed)


def test_vessels_stand_out_from_the_retina():
    """Share of pixels clearly darker in green than their surroundings: a tree, neither dust nor a flood."""
    for seed in range(10):
        green = pixels_of(PhantomClass(FUNDUS, NORMAL, "left"), seed)[..., 1]
        rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
        dark = (green < 0.80 * gaussian_filter(green, 5)) & (np.hypot(rows, columns) < 0.8)
        assert 0.04 < dark.mean() < 0.25, f"seed {seed}"


def test_fundus_colours_vary_between_eyes():
    left_eye = PhantomClass(FUNDUS, NORMAL, "left")
    eyes = np.array([pixels_of(left_eye, seed, 64)[20:44, 20:44].mean(axis=(0, 1)) for seed in range(30)])
    assert (eyes.std(axis=0) > 8).all()


def test_a_hole_goes_through_the_retina_and_a_detachment_lifts_it():
    for seed in SEEDS:
        normal = pixels_of(PhantomClass(OCT, NORMAL), seed).mean(axis=2)
        hole = pixels_of(PhantomClass(OCT, "hole"), seed).mean(axis=2)
        row = int(gaussian_filter(normal[:, :20].mean(axis=1), 1).argmax()) - 18  # mid retina at the margin
        assert hole[row - 3 : row + 3, 44:84].min(axis=0).min() < 40 < normal[row - 3 : row + 3, 10:20].mean()
        lifted = change(PhantomClass(OCT, "detachment"), seed)
        assert gaussian_filter(lifted, 2).max() > 60


def test_too_small_a_phantom_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        draw(FINDINGS[0], seed=0, size=8)


# --- captions ---


@pytest.mark.parametrize("phantom_class", FINDINGS, ids=by_name)
def test_a_caption_is_a_prompt_that_names_its_own_side_and_sequence(phantom_class):
    texts = {caption(phantom_class, seed) for seed in range(60)}
    assert len(texts) >= 5
    for text in texts:
        parsed = parse_prompt(text)
        assert parsed.kind == phantom_class.kind and parsed.text == text
        words = set(re.findall(r"\w+", text.lower()))
        assert words & {"left", "right"} == ({phantom_class.side} if phantom_class.side else set())
        assert words & {"t1", "t2"} == ({phantom_class.sequence.lower()} if phantom_class.sequence else set())
        assert len(text.split()) < 24
    assert texts <= set(all_captions())


def test_no_caption_fits_two_classes():
    owners = {}
    for phantom_class in FINDINGS:
        for seed in range(150):
            assert owners.setdefault(caption(phantom_class, seed), phantom_class) == phantom_class
    assert all(class_of_caption(text) == owner for text, owner in owners.items())
    assert class_of_caption("Chest X-ray: a broken rib") is None


def test_the_default_prompt_is_a_caption_of_the_normal_chest():
    text = "Chest X-ray: normal lung fields without infiltrates"
    assert text in {caption(PhantomClass(CHEST_XRAY, NORMAL), seed) for seed in range(400)}
    assert class_of_caption(text) == PhantomClass(CHEST_XRAY, NORMAL)


def test_the_vocabulary_is_small():
    words = Counter(word for text in all_captions() for word in re.findall(r"[a-z0-9]+", text.lower()))
    assert len(words) < 150


@pytest.mark.parametrize("phantom_class", FINDINGS, ids=by_name)
def test_another_caption_contradicts_the_image(phantom_class):
    own = {caption(phantom_class, seed) for seed in range(150)}
    others = [other_caption(phantom_class, seed) for seed in range(60)]
    assert not own & set(others)
    assert {parse_prompt(text).kind for text in others} == {phantom_class.kind}
    assert others == [other_caption(phantom_class, seed) for seed in range(60)]
    assert len(set(others)) > 5


def test_the_phantom_carries_the_caption_of_its_class_and_seed():
    for seed, phantom_class in enumerate(FINDINGS):
        assert draw(phantom_class, seed=seed, size=16).caption == caption(phantom_class, seed)


# --- defects ---


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.parametrize("phantom_class", FINDINGS[::7], ids=by_name)
def test_a_defect_grows_with_its_severity(phantom_class, name):
    for seed in SEEDS:
        clean = draw(phantom_class, seed=seed, size=64).pixels
        distances = [distance(clean, plant_defect(clean, name, severity, seed)) for severity in np.linspace(0, 1, 9)]
        assert distances[0] == 0
        assert all(np.diff(distances) > 0), (seed, distances)
        assert distances[-1] > 1.4 * distances[2], (seed, distances)


@pytest.mark.parametrize("name", DEFECTS)
def test_severity_0_leaves_every_bit_and_1_is_plain_to_see(name):
    spoilt = []
    for phantom_class in FINDINGS[::4]:
        clean = draw(phantom_class, seed=2, size=64).pixels
        before = clean.copy()
        assert np.array_equal(plant_defect(clean, name, 0.0, 2), before)
        spoilt.append(distance(plant_defect(clean, name, 1.0, 2), before))
        assert np.array_equal(clean, before), "the input was changed"
    assert np.mean(spoilt) > 12


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_follows_from_its_seed(name):
    clean = draw(FINDINGS[0], seed=1, size=64).pixels
    assert np.array_equal(plant_defect(clean, name, 0.6, 4), plant_defect(clean, name, 0.6, 4))
    if name not in ("blur", "saturation", "checkerboard"):  # these have nothing to draw by lot
        assert not np.array_equal(plant_defect(clean, name, 0.6, 4), plant_defect(clean, name, 0.6, 5))


@pytest.mark.parametrize("severity", [-0.1, 1.5, float("nan")])
def test_a_severity_outside_its_range_is_refused(severity):
    with pytest.raises(ValueError, match=r"'blur' is outside 0\.\.1"):
        draw(FINDINGS[0], seed=0, size=32, defects=[("blur", severity)])


def test_an_unknown_defect_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'scratch'.*noise"):
        draw(FINDINGS[0], seed=0, size=32, defects=[("scratch", 0.5)])


@pytest.mark.parametrize("shape, dtype", [((32, 32), np.uint8), ((32, 16, 3), np.uint8), ((32, 32, 3), np.float32)])
def test_a_defect_refuses_other_arrays(shape, dtype):
    with pytest.raises(ValueError, match=r"uint8 pixels \(S, S, 3\)"):
        plant_defect(np.zeros(shape, dtype), "noise", 0.5, 0)


def test_severities_combine_as_independent_losses():
    assert combined_severity([]) == 0
    assert combined_severity([0.3]) == pytest.approx(0.3)
    assert combined_severity([0.5, 0.5]) == pytest.approx(0.75)
    assert combined_severity([0.2, 1.0]) == 1
    phantom = draw(FINDINGS[3], seed=9, size=32, defects=[("noise", 0.2), ("blur", 0.5)])
    assert phantom.defects == (("noise", 0.2), ("blur", 0.5))
    assert phantom.severity == pytest.approx(0.6)  # 1 - 0.8 * 0.5
    clean = draw(FINDINGS[3], seed=9, size=32).pixels
    assert np.array_equal(phantom.pixels, plant_defect(plant_defect(clean, "noise", 0.2, 9), "blur", 0.5, 9))


# --- random phantoms ---


def test_random_phantoms_cover_all_classes_and_repeat_by_seed():
    phantoms = [random_phantom(seed, size=16) for seed in range(400)]
    counts = Counter(phantom.phantom_class for phantom in phantoms)
    assert set(counts) == set(FINDINGS) and max(counts.values()) < 30  # 10.5 expected of each
    assert all(phantom.defects == () for phantom in phantoms)
    again = random_phantom(17, size=16)
    assert np.array_equal(again.pixels, phantoms[17].pixels) and again.caption == phantoms[17].caption


def test_the_defect_rate_is_the_share_of_spoilt_phantoms():
    half = [random_phantom(seed, size=16, defect_rate=0.5) for seed in range(300)]
    spoilt = [phantom for phantom in half if phantom.defects]
    assert 120 < len(spoilt) < 180  # 150 expected, deviation 8.7
    for phantom in spoilt:
        assert max(severity for _, severity in phantom.defects) - 1e-9 <= phantom.severity <= 1
    assert {name for phantom in spoilt for name, _ in phantom.defects} == set(DEFECTS)
    assert all(random_phantom(seed, size=16, defect_rate=1.0).defects for seed in range(20))


def test_the_package_needs_no_torch_and_no_django():
    code = "import sys, generation.diffusion.phantoms; sys.exit(bool({'torch', 'django'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

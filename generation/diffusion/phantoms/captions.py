"""Captions of the phantoms in the prompt grammar, several wordings for each finding."""

from functools import cache

import numpy as np

from generation.diffusion.phantoms.catalogue import FINDINGS, NORMAL, PhantomClass
from medsyn.modalities import BRAIN_MRI, BREAST_MRI, CHEST_CT, CHEST_XRAY, FUNDUS, OCT, Kind

_CAPTION_STREAM = 3  # sets the wording's random stream apart from those that draw

_VIEWS = {
    FUNDUS: ("{side} eye", "{side} eye photograph", "colour photograph of the {side} eye"),
    CHEST_XRAY: ("frontal view", "frontal radiograph", "upright frontal view"),
    BRAIN_MRI: ("axial {sequence} weighted image", "{sequence} weighted axial slice", "axial {sequence}"),
    OCT: ("macular scan", "B-scan of the macula", "cross section of the retina"),
    CHEST_CT: ("axial slice", "axial slice at the heart", "transverse slice"),
    BREAST_MRI: ("axial image after contrast", "axial slice of both breasts", "contrast enhanced axial image"),
}

_NORMAL_PHRASES = ("no abnormality", "normal findings", "no visible disease")

# "normal lung fields without infiltrates" is the application's default prompt.
_NORMAL_PHRASES_OF = {
    CHEST_XRAY: ("normal lung fields without infiltrates", "clear lungs"),
    CHEST_CT: ("clear lungs",),
}

_PHRASES = {
    (FUNDUS, "exudates"): ("hard exudates", "yellow exudates", "exudates around the macula"),
    (FUNDUS, "haemorrhages"): ("retinal haemorrhages", "dark haemorrhages", "many haemorrhages"),
    (FUNDUS, "glaucoma"): ("glaucoma with a large cup", "large pale optic cup", "glaucoma"),
    (CHEST_XRAY, "infiltrate"): ("{side} lung infiltrate", "infiltrate in the {side} lung", "{side} infiltrate"),
    (CHEST_XRAY, "effusion"): ("{side} pleural effusion", "pleural effusion on the {side}", "{side} sided effusion"),
    (CHEST_XRAY, "pneumothorax"): ("{side} pneumothorax", "pneumothorax on the {side}", "collapsed {side} lung"),
    (CHEST_XRAY, "cardiomegaly"): ("cardiomegaly", "enlarged heart", "large heart, cardiomegaly"),
    (BRAIN_MRI, "mass"): ("{side} mass", "mass in the {side} hemisphere", "{side} sided tumour mass"),
    (BRAIN_MRI, "hydrocephalus"): ("hydrocephalus", "enlarged ventricles", "hydrocephalus with large ventricles"),
    (OCT, "fluid"): ("intraretinal fluid", "macular oedema with fluid", "dark cysts of fluid"),
    (OCT, "drusen"): ("drusen", "many drusen", "drusen under the retina"),
    (OCT, "detachment"): ("pigment epithelial detachment", "large detachment", "detachment under the retina"),
    (OCT, "hole"): ("macular hole", "full thickness macular hole", "hole in the macula"),
    (CHEST_CT, "nodule"): ("{side} lung nodule", "nodule in the {side} lung", "solid {side} nodule"),
    (CHEST_CT, "effusion"): ("{side} pleural effusion", "pleural effusion on the {side}", "{side} sided effusion"),
    (BREAST_MRI, "mass"): ("{side} breast mass", "mass in the {side} breast", "enhancing {side} mass"),
    (BREAST_MRI, "implants"): ("breast implants", "implants on both sides", "silicone implants"),
}

# Fundus and brain images need their view: it names the eye or the sequence.
_LAYOUTS_WITH_VIEW = ("{phrase}, {view}", "{view} with {phrase}", "{view}, {phrase}")
_LAYOUTS = (*_LAYOUTS_WITH_VIEW, "{phrase}")


def _phrases(kind: Kind, finding: str) -> tuple[str, ...]:
    if finding == NORMAL:
        return _NORMAL_PHRASES + _NORMAL_PHRASES_OF.get(kind, ())
    return _PHRASES[kind, finding]


@cache
def _wordings(phantom_class: PhantomClass) -> tuple[str, ...]:
    """Every caption of a class, in a fixed order."""
    kind = phantom_class.kind
    layouts = _LAYOUTS_WITH_VIEW if kind in (FUNDUS, BRAIN_MRI) else _LAYOUTS
    names = {"side": phantom_class.side, "sequence": phantom_class.sequence}
    texts = []
    for layout in layouts:
        views = _VIEWS[kind] if "{view}" in layout else ("",)
        for view in views:
            for phrase in _phrases(kind, phantom_class.finding):
                text = layout.format(view=view, phrase=phrase)
                texts.append(f"{kind.prefix}: {text.format(**names)}")
    return tuple(texts)


def all_captions() -> tuple[str, ...]:
    """Every caption that a phantom can carry: what a vocabulary is built from."""
    return tuple(dict.fromkeys(text for phantom_class in FINDINGS for text in _wordings(phantom_class)))


def caption(phantom_class: PhantomClass, seed: int) -> str:
    """A full prompt that describes ``phantom_class``, its wording chosen by ``seed`` (not negative)."""
    wordings = _wordings(phantom_class)
    return wordings[np.random.default_rng([seed, _CAPTION_STREAM]).integers(len(wordings))]


def other_caption(phantom_class: PhantomClass, seed: int) -> str:
    """A caption that is wrong for ``phantom_class``: same kind of image, another finding, side or sequence."""
    rng = np.random.default_rng([seed, _CAPTION_STREAM + 1])
    others = [other for other in FINDINGS if other.kind == phantom_class.kind and other != phantom_class]
    return caption(others[rng.integers(len(others))], seed)


def class_of_caption(text: str) -> PhantomClass | None:
    """The class whose caption ``text`` is; None for a prompt in other words."""
    return _class_by_caption().get(text)


@cache
def _class_by_caption() -> dict[str, PhantomClass]:
    return {text: phantom_class for phantom_class in FINDINGS for text in _wordings(phantom_class)}

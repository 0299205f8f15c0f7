"""Procedural phantoms: drawn images of known content, with captions and planted defects. Not medical images.

Coordinates, sides: the patient's right is on the left of the image (radiological convention); a fundus has the side
of its eye. Pure numpy, scipy and pillow.
"""

from generation.diffusion.phantoms.captions import all_captions, caption, class_of_caption, other_caption
from generation.diffusion.phantoms.catalogue import FINDINGS, NORMAL, PhantomClass
from generation.diffusion.phantoms.defects import DEFECTS, combined_severity, plant_defect
from generation.diffusion.phantoms.drawing import Phantom, draw, random_phantom

__all__ = [
    "DEFECTS",
    "FINDINGS",
    "NORMAL",
    "Phantom",
    "PhantomClass",
    "all_captions",
    "caption",
    "class_of_caption",
    "combined_severity",
    "draw",
    "other_caption",
    "plant_defect",
    "random_phantom",
]

"""Which phantoms exist: every kind of image with its findings, their sides and, for the brain, the MR sequence."""

from dataclasses import dataclass

from medsyn.modalities import BRAIN_MRI, BREAST_MRI, CHEST_CT, CHEST_XRAY, FUNDUS, OCT, Kind

NORMAL = "normal"
SIDES = ("left", "right")


@dataclass(frozen=True)
class PhantomClass:
    """What a phantom shows."""

    kind: Kind
    finding: str  # NORMAL or the name of the finding
    side: str = ""  # "left" or "right": the patient's side, for a fundus the eye; "" where sides make no difference
    sequence: str = ""  # "T1" or "T2" for the brain, else ""

    @property
    def name(self) -> str:
        """A name unique among FINDINGS, fit for a file: ``brain_mri-T1-mass-left``."""
        return "-".join(part for part in (self.kind.slug, self.sequence, self.finding, self.side) if part)


def _one_sided(kind: Kind, *findings: str, sequence: str = "") -> tuple[PhantomClass, ...]:
    return tuple(PhantomClass(kind, finding, side, sequence) for finding in findings for side in SIDES)


def _brain(sequence: str) -> tuple[PhantomClass, ...]:
    return (
        PhantomClass(BRAIN_MRI, NORMAL, sequence=sequence),
        *_one_sided(BRAIN_MRI, "mass", sequence=sequence),
        PhantomClass(BRAIN_MRI, "hydrocephalus", sequence=sequence),
    )


FINDINGS: tuple[PhantomClass, ...] = (
    *_one_sided(FUNDUS, NORMAL, "exudates", "haemorrhages", "glaucoma"),
    PhantomClass(CHEST_XRAY, NORMAL),
    *_one_sided(CHEST_XRAY, "infiltrate", "effusion", "pneumothorax"),
    PhantomClass(CHEST_XRAY, "cardiomegaly"),
    *_brain("T1"),
    *_brain("T2"),
    *(PhantomClass(OCT, finding) for finding in (NORMAL, "fluid", "drusen", "detachment", "hole")),
    PhantomClass(CHEST_CT, NORMAL),
    *_one_sided(CHEST_CT, "nodule", "effusion"),
    PhantomClass(BREAST_MRI, NORMAL),
    *_one_sided(BREAST_MRI, "mass"),
    PhantomClass(BREAST_MRI, "implants"),
)

"""How a study is read: the fields of a protocol, with what each is for."""

import re
import uuid
from collections.abc import Iterable

from django import forms

from generation.models import GeneratedImage
from medsyn.percent import percent
from ratings.answer_codes import DEFECTS
from ratings.models import Anchor, GoldGrade, Grade, Protocol
from ratings.services.protocols import MAX_DISTANCE, MAX_OVERLAP, MAX_SCALE_TEXT, MAX_TRAINING_IMAGES

DEFECT_KEYS = "qwertyuop"  # i inverts the image, a holds the anchors, c comments
MAX_DEFECT_CODE = 30  # characters
GOLD_SHOWN = 8  # gold images of a grade to choose an anchor from
TRAINING_IMAGES = 20  # a training round of this length, where there are gold images enough
_CODE = re.compile(r"[a-z][a-z0-9_]*")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NO_ANCHOR = ("", "None")


def _percent(label: str, help_text: str, *, most: int = 50, initial: int = 0) -> forms.IntegerField:
    return forms.IntegerField(
        label=f"{label} (%)", min_value=0, max_value=most, required=False, initial=initial, help_text=help_text
    )


def as_code(label: str) -> str:
    """The code of a label that was given none: "Broken vessels" -> "broken_vessels"."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:MAX_DEFECT_CODE].strip("_")


def own_defects(text: str) -> list[list[str]]:
    """[code, label] of every line, "code: label" or a label alone. ValidationError names the line at fault."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        code, colon, label = (part.strip() for part in line.partition(":"))
        if not colon:
            code, label = as_code(line), line.strip()
        if not _CODE.fullmatch(code) or len(code) > MAX_DEFECT_CODE or not label:
            raise forms.ValidationError(
                f"Line {number}, {line.strip()!r}: write a code of at most {MAX_DEFECT_CODE} small letters, digits "
                "and underscores, a colon and a label, such as vessel: Vessels broken off."
            )
        found.append([code, label])
    return found


class ProtocolForm(forms.Form):
    """How a study is read. Empty shares are none."""

    overlap = forms.ChoiceField(
        label="Who reads what",
        choices=[("all", "Every reader reads every image"), ("some", "Each image goes to some of the readers")],
        widget=forms.RadioSelect,
        required=False,
        initial="all",
        help_text="Shared images show how far readers agree. An open pool gets more images rated: whoever reads "
        "takes the next ones, and no image gets more readers than asked for.",
    )
    overlap_target = forms.IntegerField(
        label="Readers per image",
        min_value=1,
        max_value=MAX_OVERLAP,
        required=False,
        initial=3,
        help_text="Only for an open pool. Three readers on 200 shared images give alpha to about ±0.07.",
    )
    repeat_percent = _percent(
        "Hidden repeats",
        "Images that a reader sees a second time without being told: how steadily they grade. 100 per reader give "
        "their kappa to about ±0.10, 50 to ±0.15, 20 to ±0.29.",
        initial=10,
    )
    repeat_distance = forms.IntegerField(
        label="Least distance of a repeat",
        min_value=1,
        max_value=MAX_DISTANCE,
        required=False,
        initial=30,
        help_text="Images between the two showings, so that nobody remembers.",
    )
    gold_percent = _percent(
        "Gold images", "Images whose grade is known, mixed in unmarked: how often a reader finds it."
    )
    real_percent = _percent(
        "Real images", "Images of patients, mixed in unmarked: whether readers grade synthetic ones lower."
    )
    calibration_percent = _percent(
        "Calibration",
        "Kept out of all training, drawn at random: on them a filter's promise is measured honestly.",
        most=100,
        initial=40,
    )
    num_training_images = forms.IntegerField(
        label="Training round",
        min_value=0,
        max_value=MAX_TRAINING_IMAGES,
        required=False,
        initial=0,
        help_text="Gold images with feedback before a reader begins, not part of the study.",
    )
    scale_1 = forms.CharField(label="1 · Poor", max_length=MAX_SCALE_TEXT, required=False)
    scale_2 = forms.CharField(label="2 · Acceptable", max_length=MAX_SCALE_TEXT, required=False)
    scale_3 = forms.CharField(label="3 · Excellent", max_length=MAX_SCALE_TEXT, required=False)
    defects = forms.MultipleChoiceField(
        label="Standard defects",
        choices=list(DEFECTS.items()),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        initial=list(DEFECTS),
    )
    own_defects = forms.CharField(
        label="Defects of your own",
        required=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One per line, code and label: vessel: Vessels broken off. The code is stored and exported, "
        "readers see the label.",
    )
    SHARES = ("repeat", "gold", "real", "calibration")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for grade in Grade:
            gold = GoldGrade.objects.filter(grade=grade).select_related("image__prompt").order_by("-pk")[:GOLD_SHOWN]
            images = [entry.image for entry in gold]
            self.fields[f"anchor_{grade}"] = forms.ChoiceField(
                label=f"{grade.value} · {grade.label}",
                choices=[_NO_ANCHOR, *((str(image.public_id), image.prompt.text) for image in images)],
                widget=forms.RadioSelect,
                required=False,
            )
            self.fields[f"anchor_{grade}_id"] = forms.CharField(
                label=f"Another image as the anchor of {grade.label.lower()}",
                required=False,
                max_length=500,
                widget=forms.TextInput(attrs={"placeholder": "Id or address of its page"}),
            )

    def clean_own_defects(self) -> list[list[str]]:
        return own_defects(self.cleaned_data["own_defects"])

    def clean(self) -> dict:
        given = super().clean() or self.cleaned_data
        self._clean_overlap(given)
        self._clean_defects(given)
        if (given.get("gold_percent") or 0) + (given.get("real_percent") or 0) > 80:
            self.add_error(
                "real_percent",
                f"Gold and real images together may be {percent(0.8)} at most: the rest are the study's own.",
            )
        for grade in Grade:
            self._clean_anchor(grade)
        return given

    def _clean_overlap(self, given: dict) -> None:
        is_missing = not given.get("overlap_target") and "overlap_target" not in self.errors
        if given.get("overlap") == "some" and is_missing:
            self.add_error("overlap_target", "Say how many readers each image is to have.")

    def _clean_defects(self, given: dict) -> None:
        codes = [code for code, _ in self.defect_list(given)]
        doubles = sorted({code for code in codes if codes.count(code) > 1})
        if doubles:
            self.add_error("own_defects", f"Twice in the list: {', '.join(doubles)}. Every defect has one code.")
        if len(codes) > len(DEFECT_KEYS):
            self.add_error(
                "own_defects",
                f"These are {len(codes)} defects; there are keys for {len(DEFECT_KEYS)} ({' '.join(DEFECT_KEYS)}).",
            )

    def _clean_anchor(self, grade: Grade) -> None:
        """The image itself in place of its id or address."""
        name = f"anchor_{grade}_id" if self.cleaned_data.get(f"anchor_{grade}_id") else f"anchor_{grade}"
        given = self.cleaned_data.get(name) or ""
        found = _UUID.search(given)
        image = found and GeneratedImage.objects.filter(public_id=uuid.UUID(found[0])).first()
        if given and not image:
            self.add_error(
                name, f"There is no image {given!r}. Copy the address of its page, or choose a gold image."
            )
        self.cleaned_data[f"anchor_{grade}"] = image or None

    def defect_list(self, given: dict) -> list[list[str]]:
        """[code, label] in the order of the keys: the standard ones, then those of one's own."""
        standard = [[code, DEFECTS[code]] for code in DEFECTS if code in (given.get("defects") or ())]
        return standard + (given.get("own_defects") or [])

    def protocol(self) -> dict:
        """Fields of Protocol by name; call after is_valid()."""
        given = self.cleaned_data
        return {
            "overlap_target": given["overlap_target"] if given["overlap"] == "some" else None,
            **{f"{name}_share": (given[f"{name}_percent"] or 0) / 100 for name in self.SHARES},
            "repeat_distance": given["repeat_distance"] or 30,
            "num_training_images": given["num_training_images"] or 0,
            "scale_texts": {str(grade.value): given[f"scale_{grade}"] for grade in Grade},
            "defects": self.defect_list(given),
        }

    def anchors(self) -> dict[int, GeneratedImage]:
        """By grade; call after is_valid()."""
        chosen = {grade.value: self.cleaned_data[f"anchor_{grade}"] for grade in Grade}
        return {grade: image for grade, image in chosen.items() if image}

    def _fields(self, names: Iterable[str]) -> list:
        return [self[name] for name in names]

    def overlap_fields(self) -> list:
        return self._fields(("overlap", "overlap_target"))

    def mixing_fields(self) -> list:
        names = ("repeat_percent", "repeat_distance", "gold_percent", "real_percent", "calibration_percent")
        return self._fields((*names, "num_training_images"))

    def scale_fields(self) -> list:
        return self._fields(f"scale_{grade}" for grade in Grade)

    def anchor_fields(self) -> list[tuple]:
        """(choice among gold images, id of another one) by grade."""
        return [(self[f"anchor_{grade}"], self[f"anchor_{grade}_id"]) for grade in Grade]

    def defect_fields(self) -> list:
        return self._fields(("defects", "own_defects"))


def initial_of(protocol: Protocol) -> dict:
    """What a ProtocolForm shows of a protocol."""
    known = {code for code, label in protocol.defects if DEFECTS.get(code) == label}
    others = [f"{code}: {label}" for code, label in protocol.defects if code not in known]
    return {
        "overlap": "some" if protocol.overlap_target else "all",
        "overlap_target": protocol.overlap_target or 3,
        **{f"{name}_percent": round(100 * getattr(protocol, f"{name}_share")) for name in ProtocolForm.SHARES},
        "repeat_distance": protocol.repeat_distance,
        "num_training_images": protocol.num_training_images,
        **{f"scale_{grade}": protocol.scale_texts.get(str(grade.value), "") for grade in Grade},
        "defects": list(known),
        "own_defects": "\n".join(others),
        **{
            f"anchor_{anchor.grade}": str(anchor.image.public_id)
            for anchor in protocol.anchors.select_related("image")
        },
    }


class RevisionForm(ProtocolForm):
    """A change of a protocol; a reason is needed once ratings were given under it."""

    reason = forms.CharField(
        label="Why it changes",
        max_length=500,
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Stays with the new version for good.",
    )

    def __init__(self, *args, protocol: Protocol, is_frozen: bool, **kwargs):
        super().__init__(*args, initial=initial_of(protocol), **kwargs)
        for anchor in protocol.anchors.select_related("image__prompt"):
            self._offer(anchor)
        self.fields["reason"].required = is_frozen
        self.fields["reason"].error_messages["required"] = "Say why: ratings were given under the present version."

    def _offer(self, anchor: Anchor) -> None:
        """The anchor that there is can be kept, whether it is among the newest gold images or not."""
        field = self.fields[f"anchor_{anchor.grade}"]
        code = str(anchor.image.public_id)
        others = [choice for choice in field.choices if choice[0] not in ("", code)]
        field.choices = [_NO_ANCHOR, (code, anchor.image.prompt.text), *others]

    def changes(self) -> dict:
        """What revise_protocol() is to change, by its argument; call after is_valid()."""
        found = {name: value for name, value in self.protocol().items() if self._has_changed(name)}
        chosen = self.anchors()
        touched = [
            grade.value for grade in Grade if {f"anchor_{grade}", f"anchor_{grade}_id"} & set(self.changed_data)
        ]
        return found | ({"anchors": {grade: chosen.get(grade) for grade in touched}} if touched else {})

    def _has_changed(self, name: str) -> bool:
        """Whether the fields of the form behind a field of Protocol are otherwise than they were shown."""
        behind = {
            "overlap_target": {"overlap", "overlap_target"},
            "scale_texts": {f"scale_{grade}" for grade in Grade},
            "defects": {"defects", "own_defects"},
            **{f"{share}_share": {f"{share}_percent"} for share in self.SHARES},
        }
        return bool(behind.get(name, {name}) & set(self.changed_data))

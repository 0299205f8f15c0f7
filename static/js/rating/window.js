/* Windows on the values of an image: DICOM PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3.2 (LINEAR_EXACT). */

// [name, centre, width] in Hounsfield units; medsyn/imaging/windowing.py has the same numbers.
export const PRESETS = [
  ["Lung", -600, 1500],
  ["Soft tissue", 40, 400],
  ["Bone", 400, 1800],
  ["Vessels", 100, 700],
  ["Liver", 60, 160],
];

// By unit: what a pixel of a drag changes, and how narrow and wide a window may be.
const STEP = { HU: 2, "%": 0.25 };
const NARROWEST = { HU: 2, "%": 0.1 };
const WIDEST = { HU: 30_000, "%": 1000 };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export const firstWindow = ({ scale: { centre, width } }) => ({ centre, width });

/** The window after a drag of (right, down) CSS pixels: wider to the right, darker downwards. */
export function dragged({ scale, top }, { centre, width }, right, down) {
  const step = STEP[scale.unit];
  return {
    width: clamp(width + step * right, NARROWEST[scale.unit], WIDEST[scale.unit]),
    centre: clamp(centre + step * down, scale.intercept, scale.intercept + top * scale.slope),
  };
}

/** What makes grey levels of samples: (sample - pivot) * gain + 0.5, 0 black and 1 white. Taking the pivot off first
    keeps the numbers small enough for the single precision of a graphics card. */
export function toneOf({ scale }, { centre, width }, isInverted) {
  const isLinear = scale.isLinear && width > 1;
  const [middle, span] = isLinear ? [centre - 0.5, width - 1] : [centre, width];
  const gain = scale.slope / span;
  return { pivot: (middle - scale.intercept) / scale.slope, gain: isInverted ? -gain : gain };
}

function written(value) {
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toFixed(digits).replace("-", "\u2212");
}

/** "W 400  L 40 HU" */
export const readout = ({ scale }, { centre, width }) =>
  `W ${written(width)}  L ${written(centre)}\u00a0${scale.unit}`;

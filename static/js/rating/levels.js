/* Smaller versions of a picture, for a stage that is smaller than it. */

/** Half as large: means of two by two samples, of fewer at an odd edge. */
export function halved({ columns, rows, channels, samples }) {
  const [newColumns, newRows] = [(columns + 1) >> 1, (rows + 1) >> 1];
  const out = new samples.constructor(newColumns * newRows * channels);
  for (let y = 0, at = 0; y < newRows; y += 1) {
    const above = 2 * y * columns;
    const below = Math.min(2 * y + 1, rows - 1) * columns;
    for (let x = 0; x < newColumns; x += 1) {
      const right = Math.min(2 * x + 1, columns - 1);
      for (let c = 0; c < channels; c += 1, at += 1) {
        const left = 2 * x * channels + c;
        const other = right * channels + c;
        out[at] = (samples[above * channels + left] + samples[above * channels + other]
          + samples[below * channels + left] + samples[below * channels + other] + 2) >> 2;
      }
    }
  }
  return { columns: newColumns, rows: newRows, channels, samples: out };
}

/** The picture, or, shown at less than its size, the version of it whose pixels are shown at half their size or more:
    leaving samples out would make patterns that the image does not have. Made once. */
export function levelFor(picture, pixelsPerSample) {
  picture.levels ??= [picture];
  let level = 0;
  for (let scale = pixelsPerSample; scale < 0.5 && picture.levels[level].columns > 1 && picture.levels[level].rows > 1; scale *= 2) {
    level += 1;
    picture.levels[level] ??= halved(picture.levels[level - 1]);
  }
  return { ...picture.levels[level], key: picture.levels[level], factor: 2 ** level };
}

/* Draws a picture through a window without a graphics card, by the same rule as gl.js. */

/** Where each screen pixel's centre falls between two samples, along one axis: {first, last} screen pixels of the image,
    `low` and `high` sample and the `share` of the high one. */
function taps(count, { origin, scale }, length, { samples, factor }) {
  const first = Math.max(0, Math.ceil(origin - 0.5));
  const last = Math.min(count, Math.ceil(origin + length * scale - 0.5));
  const size = Math.max(0, last - first);
  const [low, high, share] = [new Int32Array(size), new Int32Array(size), new Float64Array(size)];
  for (let i = 0; i < size; i += 1) {
    const at = Math.min(Math.max((first + i + 0.5 - origin) / (scale * factor) - 0.5, 0), samples - 1);
    low[i] = Math.floor(at);
    high[i] = Math.min(low[i] + 1, samples - 1);
    share[i] = at - low[i];
  }
  return { first, last, low, high, share };
}

export class CanvasSurface {
  name = "canvas";
  canvas = document.createElement("canvas");
  #context = this.canvas.getContext("2d");
  #image = null; // kept from drawing to drawing: making it costs as much as filling it

  holds() {
    return true;
  }

  /** picture: its own size, level: the samples to draw from, place: {x, y, scale} of its upper left corner and of one
      of its pixels, in screen pixels; tone: window.js. */
  draw(picture, level, place, tone) {
    const { width, height } = this.canvas;
    if (this.#image?.width !== width || this.#image?.height !== height) this.#image = this.#context.createImageData(width, height);
    else this.#image.data.fill(0);
    const across = taps(width, { origin: place.x, scale: place.scale }, picture.columns, { samples: level.columns, factor: level.factor });
    const down = taps(height, { origin: place.y, scale: place.scale }, picture.rows, { samples: level.rows, factor: level.factor });
    paint(this.#image, level, across, down, tone);
    this.#context.putImageData(this.#image, 0, 0);
  }

  clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
}

/** Rows of samples, interpolated across and windowed, 0 to 255 and beyond; the last two are kept, for rows that follow
    each other on the screen lie between the same ones. (A window is linear: before or after the interpolation is the same,
    as long as nothing is cut off in between.) */
class Rows {
  #level;
  #across;
  #tone;
  #made = new Map();

  constructor(level, across, tone) {
    this.#level = level;
    this.#across = across;
    this.#tone = { pivot: tone.pivot, gain: tone.gain * 255 };
  }

  at(row) {
    let made = this.#made.get(row);
    if (made) return made;
    const [[oldest, reused] = []] = this.#made.size > 1 ? this.#made : [];
    this.#made.delete(oldest);
    made = reused ?? new Float64Array(this.#across.share.length * this.#level.channels);
    this.#fill(made, row);
    this.#made.set(row, made);
    return made;
  }

  #fill(made, row) {
    const { samples, columns, channels } = this.#level;
    const { low, high, share } = this.#across;
    const { pivot, gain } = this.#tone;
    const start = row * columns * channels;
    for (let c = 0; c < channels; c += 1) {
      for (let i = 0; i < share.length; i += 1) {
        const from = samples[start + low[i] * channels + c];
        const to = samples[start + high[i] * channels + c];
        made[i * channels + c] = (from + (to - from) * share[i] - pivot) * gain + 127.5;
      }
    }
  }
}

function paint(image, level, across, down, tone) {
  const rows = new Rows(level, across, tone);
  const write = level.channels === 1 ? writeGrey : writeColours;
  const target = level.channels === 1 ? new Uint32Array(image.data.buffer) : image.data;
  for (let row = down.first; row < down.last; row += 1) {
    const at = row - down.first;
    write(target, row * image.width + across.first, rows.at(down.low[at]), rows.at(down.high[at]), down.share[at]);
  }
}

function writeGrey(words, start, upper, lower, share) {
  for (let i = 0; i < upper.length; i += 1) {
    const level = upper[i] + (lower[i] - upper[i]) * share;
    const grey = level <= 0 ? 0 : level >= 255 ? 255 : (level + 0.5) | 0;
    words[start + i] = 0xff000000 | (grey * 0x010101);
  }
}

function writeColours(bytes, start, upper, lower, share) {
  for (let i = 0, at = 4 * start; i < upper.length; i += 3, at += 4) {
    bytes[at] = upper[i] + (lower[i] - upper[i]) * share; // the array rounds and clamps by itself
    bytes[at + 1] = upper[i + 1] + (lower[i + 1] - upper[i + 1]) * share;
    bytes[at + 2] = upper[i + 2] + (lower[i + 2] - upper[i + 2]) * share;
    bytes[at + 3] = 255;
  }
}

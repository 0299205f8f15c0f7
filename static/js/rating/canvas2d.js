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

  holds() {
    return true;
  }

  /** picture: its own size, level: the samples to draw from, place: {x, y, scale} of its upper left corner and of one
      of its pixels, in screen pixels; tone: window.js. */
  draw(picture, level, place, tone) {
    const { width, height } = this.canvas;
    const image = this.#context.createImageData(width, height);
    const across = taps(width, { origin: place.x, scale: place.scale }, picture.columns, { samples: level.columns, factor: level.factor });
    const down = taps(height, { origin: place.y, scale: place.scale }, picture.rows, { samples: level.rows, factor: level.factor });
    const paint = level.channels === 1 ? paintGrey : paintColours;
    paint(image, level, across, down, tone);
    this.#context.putImageData(image, 0, 0);
  }

  clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
}

function paintGrey(image, { samples, columns }, across, down, { pivot, gain }) {
  const bytes = new Uint32Array(image.data.buffer);
  for (let row = down.first; row < down.last; row += 1) {
    const above = down.low[row - down.first] * columns;
    const below = down.high[row - down.first] * columns;
    const share = down.share[row - down.first];
    for (let i = 0, at = row * image.width + across.first; at < row * image.width + across.last; i += 1, at += 1) {
      const [low, high, part] = [across.low[i], across.high[i], across.share[i]];
      const upper = samples[above + low] + (samples[above + high] - samples[above + low]) * part;
      const lower = samples[below + low] + (samples[below + high] - samples[below + low]) * part;
      const level = (upper + (lower - upper) * share - pivot) * gain + 0.5;
      const grey = level <= 0 ? 0 : level >= 1 ? 255 : (level * 255 + 0.5) | 0;
      bytes[at] = 0xff000000 | (grey * 0x010101);
    }
  }
}

function paintColours(image, { samples, columns }, across, down, { pivot, gain }) {
  const bytes = image.data; // rounds and clamps by itself
  for (let row = down.first; row < down.last; row += 1) {
    const above = down.low[row - down.first] * columns;
    const below = down.high[row - down.first] * columns;
    const share = down.share[row - down.first];
    for (let i = 0, at = 4 * (row * image.width + across.first); i < across.share.length; i += 1, at += 4) {
      const part = across.share[i];
      for (let c = 0; c < 3; c += 1) {
        const [low, high] = [3 * across.low[i] + c, 3 * across.high[i] + c];
        const upper = samples[3 * above + low] + (samples[3 * above + high] - samples[3 * above + low]) * part;
        const lower = samples[3 * below + low] + (samples[3 * below + high] - samples[3 * below + low]) * part;
        bytes[at + c] = ((upper + (lower - upper) * share - pivot) * gain + 0.5) * 255;
      }
      bytes[at + 3] = 255;
    }
  }
}

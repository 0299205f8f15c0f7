/* The two forms of PNG that the server sends (ratings/reader_images.py), decoded to their very samples: the browser's own
   decoder cuts 16 bits down to 8, and some browsers blur what is read back from a canvas against fingerprinting. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const PER_CENT = { slope: 100 / 255, intercept: 0, centre: 50, width: 100, unit: "%", isLinear: false };

function* chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = SIGNATURE.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    yield { name: String.fromCharCode(...bytes.subarray(at + 4, at + 8)), body: bytes.subarray(at + 8, at + 8 + length) };
    at += length + 12;
  }
}

const viewOf = (body) => new DataView(body.buffer, body.byteOffset, body.byteLength);

function headerOf(body) {
  const view = viewOf(body);
  const [depth, colour, , , interlace] = body.subarray(8);
  const isDeep = depth === 16 && colour === 0;
  if (interlace || (!isDeep && (depth !== 8 || colour !== 2))) throw new Error("the image has a form that is not known here");
  return { columns: view.getUint32(0), rows: view.getUint32(4), isDeep };
}

/** slope, intercept, first window and unit, as the chunk "viEw" says. */
function scaleOf(body) {
  const view = viewOf(body);
  const [slope, intercept, centre, width] = [0, 8, 16, 24].map((at) => view.getFloat64(at, true));
  return { slope, intercept, centre, width, unit: body[32] ? "HU" : "%", isLinear: body[33] === 1 };
}

async function inflated(pieces) {
  const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function paeth(left, above, corner) {
  const estimate = left + above - corner;
  const [toLeft, toAbove, toCorner] = [Math.abs(estimate - left), Math.abs(estimate - above), Math.abs(estimate - corner)];
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}

/** Undo the filter of one row that lies at `at`, what is left of the picture counting as 0 (ISO/IEC 15948, 9.2). One
    loop for each filter: this is where the time goes. */
const UNDO = [
  () => {},
  function sub(out, at, end, step) {
    for (let i = at + step; i < end; i += 1) out[i] += out[i - step];
  },
  function up(out, at, end, step, stride) {
    if (at) for (let i = at; i < end; i += 1) out[i] += out[i - stride];
  },
  function average(out, at, end, step, stride) {
    for (let i = at; i < end; i += 1) out[i] += ((i - at < step ? 0 : out[i - step]) + (at ? out[i - stride] : 0)) >> 1;
  },
  function byPaeth(out, at, end, step, stride) {
    for (let i = at; i < end; i += 1) {
      const isFirst = i - at < step;
      out[i] += paeth(isFirst ? 0 : out[i - step], at ? out[i - stride] : 0, at && !isFirst ? out[i - stride - step] : 0);
    }
  },
];

/** Rows of `stride` bytes without the byte before each that names its filter, and without the filters. */
function unfiltered(raw, rows, stride, step) {
  if (raw.length < rows * (stride + 1)) throw new Error("the image is cut short");
  const out = new Uint8Array(rows * stride);
  for (let row = 0; row < rows; row += 1) {
    const from = row * (stride + 1);
    const undo = UNDO[raw[from]];
    if (!undo) throw new Error("the image is damaged");
    out.set(raw.subarray(from + 1, from + 1 + stride), row * stride);
    undo(out, row * stride, (row + 1) * stride, step, stride);
  }
  return out;
}

function bigEndian(bytes) {
  const samples = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < samples.length; i += 1) samples[i] = (bytes[2 * i] << 8) | bytes[2 * i + 1];
  return samples;
}

/** The one channel of a picture whose three are equal, which most are: a third of the work of showing it; or null. */
function onlyChannel(rgb) {
  for (let i = 0; i < rgb.length; i += 3) if (rgb[i] !== rgb[i + 1] || rgb[i] !== rgb[i + 2]) return null;
  const grey = new Uint8Array(rgb.length / 3);
  for (let i = 0; i < grey.length; i += 1) grey[i] = rgb[3 * i];
  return grey;
}

/** {columns, rows, channels, samples, top, scale}: samples row by row, 1 channel of 16 or 8 bits or 3 of 8, the largest of
    them; a value is sample * scale.slope + scale.intercept in scale.unit. */
export async function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  if (SIGNATURE.some((byte, at) => bytes[at] !== byte)) throw new Error("the image is no PNG");
  let header = null;
  let scale = PER_CENT;
  const pieces = [];
  for (const { name, body } of chunks(bytes)) {
    if (name === "IHDR") header = headerOf(body);
    else if (name === "viEw") scale = scaleOf(body);
    else if (name === "IDAT") pieces.push(body);
  }
  const { columns, rows, isDeep } = header;
  const step = isDeep ? 2 : 3;
  const plain = unfiltered(await inflated(pieces), rows, columns * step, step);
  const grey = isDeep ? bigEndian(plain) : onlyChannel(plain);
  const samples = grey ?? plain;
  let top = 0;
  for (let i = 0; i < samples.length; i += 1) if (samples[i] > top) top = samples[i];
  return { columns, rows, channels: grey ? 1 : 3, samples, top, scale };
}

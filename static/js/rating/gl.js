/* Draws a picture through a window on the graphics card (WebGL2), from the samples as they are. */

const VERTEX = `#version 300 es
void main() { // one triangle over everything
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

// Values are interpolated first and windowed afterwards, as on a radiologist's workstation: linearly at every zoom, for
// the squares of the nearest value have edges that are in no image and hide what is.
const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D samples;
uniform vec2 origin; // of the picture's upper left corner, screen pixels from the canvas's upper left
uniform vec2 size; // of the picture, its own pixels
uniform float height; // of the canvas
uniform float scale; // screen pixels per pixel of the picture
uniform float factor; // pixels of the picture per sample
uniform float pivot;
uniform float gain;
uniform bool isGrey;
out vec4 colour;

vec3 sampleAt(ivec2 at) {
  return vec3(texelFetch(samples, at, 0).rgb) - pivot;
}

void main() {
  vec2 screen = vec2(gl_FragCoord.x, height - gl_FragCoord.y) - origin;
  if (any(lessThan(screen, vec2(0.0))) || any(greaterThanEqual(screen, size * scale))) {
    colour = vec4(0.0);
    return;
  }
  ivec2 last = textureSize(samples, 0) - 1;
  vec2 at = clamp(screen / (scale * factor) - 0.5, vec2(0.0), vec2(last));
  ivec2 low = ivec2(floor(at));
  ivec2 high = min(low + 1, last);
  vec2 share = at - vec2(low);
  vec3 upper = mix(sampleAt(low), sampleAt(ivec2(high.x, low.y)), share.x);
  vec3 lower = mix(sampleAt(ivec2(low.x, high.y)), sampleAt(high), share.x);
  vec3 level = mix(upper, lower, share.y) * gain + 0.5;
  colour = vec4(clamp(isGrey ? level.rrr : level, 0.0, 1.0), 1.0);
}`;

const UNIFORMS = ["origin", "size", "height", "scale", "factor", "pivot", "gain", "isGrey"];

function compiled(gl, type, source) {
  const shader = gl.createShader(type);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  return shader;
}

/** Whether the processor plays the graphics card, which takes longer than canvas2d.js; not every browser owns up to it
    when it is asked to fail for that. */
function isImitated(gl) {
  const names = gl.getExtension("WEBGL_debug_renderer_info");
  return /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
}

/** The program, in use; throws where the card refuses it. */
function linked(gl) {
  const program = gl.createProgram();
  gl.attachShader(program, compiled(gl, gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compiled(gl, gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`WebGL: ${gl.getProgramInfoLog(program)}`);
  gl.useProgram(program);
  return program;
}

export class GLSurface {
  name = "webgl2";
  canvas = document.createElement("canvas");
  #gl;
  #at;
  #picture = null;
  #textures = new Map(); // of this picture, by level

  /** Throws where there is no WebGL2. onLost(): the card is gone (driver, sleep); another surface must take over. */
  constructor(onLost) {
    const wanted = { antialias: false, depth: false, premultipliedAlpha: true, failIfMajorPerformanceCaveat: true };
    const gl = this.canvas.getContext("webgl2", wanted);
    if (!gl) throw new Error("no WebGL2");
    if (isImitated(gl)) {
      gl.getExtension("WEBGL_lose_context")?.loseContext();
      throw new Error("WebGL2 without a graphics card");
    }
    this.#gl = gl;
    const program = linked(gl);
    this.#at = Object.fromEntries(UNIFORMS.map((name) => [name, gl.getUniformLocation(program, name)]));
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.canvas.addEventListener("webglcontextlost", onLost);
  }

  holds({ columns, rows }) {
    const limit = this.#gl.getParameter(this.#gl.MAX_TEXTURE_SIZE);
    return columns <= limit && rows <= limit;
  }

  /** As CanvasSurface.draw. */
  draw(picture, level, place, { pivot, gain }) {
    const gl = this.#gl;
    if (picture !== this.#picture) this.#forget();
    this.#picture = picture;
    this.#bind(level);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.uniform2f(this.#at.origin, place.x, place.y);
    gl.uniform2f(this.#at.size, picture.columns, picture.rows);
    gl.uniform1f(this.#at.height, this.canvas.height);
    gl.uniform1f(this.#at.scale, place.scale);
    gl.uniform1f(this.#at.factor, level.factor);
    gl.uniform1f(this.#at.pivot, pivot);
    gl.uniform1f(this.#at.gain, gain);
    gl.uniform1i(this.#at.isGrey, level.channels === 1);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  clear() {
    this.#forget();
    this.#gl.clear(this.#gl.COLOR_BUFFER_BIT);
  }

  #bind({ key, columns, rows, channels, samples }) {
    const gl = this.#gl;
    const known = this.#textures.get(key);
    gl.bindTexture(gl.TEXTURE_2D, known ?? gl.createTexture());
    if (known) return;
    this.#textures.set(key, gl.getParameter(gl.TEXTURE_BINDING_2D));
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    const [stored, given] = channels === 1 ? [gl.R8UI, gl.RED_INTEGER] : [gl.RGB8UI, gl.RGB_INTEGER];
    const isDeep = samples instanceof Uint16Array;
    const type = isDeep ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE;
    gl.texImage2D(gl.TEXTURE_2D, 0, isDeep ? gl.R16UI : stored, columns, rows, 0, given, type, samples);
  }

  #forget() {
    for (const texture of this.#textures.values()) this.#gl.deleteTexture(texture);
    this.#textures.clear();
    this.#picture = null;
  }
}

/* The image on the stage: its window, its place, and the hands on it. */

import { CanvasSurface } from "./canvas2d.js";
import { GLSurface } from "./gl.js";
import { gestures } from "./gestures.js";
import { levelFor } from "./levels.js";
import { PRESETS, dragged, firstWindow, readout, toneOf } from "./window.js";

const MOST_ENLARGED = 40; // CSS pixels per pixel of the image
const LEAST = 0.5; // of the size that fits, or of the image's own if that is smaller
const KEY_ZOOM = 1.25;
const KEY_PIXELS = 10; // a key's press changes the window as a drag of so many pixels
const KEY_PAN = 40; // CSS pixels

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Viewer {
  #stage;
  #bar;
  #surface;
  #picture = null;
  #window = null;
  #isInverted = false;
  #place = null; // {x, y, scale}: upper left corner, CSS pixels from the stage's; CSS pixels per pixel of the image
  #hasWindow = false; // the reader changed it since the image came
  #hasZoom = false;
  #isDrawing = false;

  /** stage: the element to fill; bar: holds [data-readout], [data-presets], [data-invert], [data-reset]. */
  constructor(stage, bar) {
    this.#stage = stage;
    this.#bar = bar;
    this.#mount(this.#card());
    gestures(stage, this);
    new ResizeObserver(() => this.#resize()).observe(stage);
    this.#furnish();
  }

  /** Show a picture as it comes: its own window, as large as fits. */
  show(picture) {
    this.#picture = picture;
    if (!this.#surface.holds(picture)) this.#mount(new CanvasSurface());
    this.#hasWindow = this.#hasZoom = false;
    this.#restore();
    this.#surface.canvas.hidden = false;
    const inUnits = picture.scale.unit === "HU";
    this.#bar.querySelector("[data-presets]").hidden = !inUnits;
    for (const tool of this.#bar.querySelectorAll("[data-invert], [data-reset]")) tool.hidden = false;
    this.#draw();
  }

  clear() {
    this.#picture = null;
    this.#surface.clear();
    this.#surface.canvas.hidden = true;
    this.#bar.querySelector("[data-readout]").textContent = "";
    for (const tool of this.#bar.querySelectorAll("[data-presets], [data-invert], [data-reset]")) tool.hidden = true;
  }

  /** What an answer stores of it (serializers.DisplaySerializer). */
  get display() {
    return {
      window_width: this.#window.width,
      window_center: this.#window.centre,
      window_unit: this.#picture.scale.unit,
      zoom: this.#place.scale,
      inverted: this.#isInverted,
      window_touched: this.#hasWindow,
      zoom_touched: this.#hasZoom,
    };
  }

  // What hands and keys do ------------------------------------------------------------------------------------

  get isEmpty() {
    return !this.#picture;
  }

  get window() {
    return { ...this.#window };
  }

  /** The window that `from` becomes by a drag of (right, down) CSS pixels. */
  drag(from, right, down) {
    this.#window = dragged(this.#picture, from, right, down);
    this.#hasWindow = true;
    this.#soon();
  }

  /** Move the image; the middle of the stage stays on it. */
  pan(right, down) {
    this.#place = this.#held({ ...this.#place, x: this.#place.x + right, y: this.#place.y + down });
    this.#hasZoom = true;
    this.#soon();
  }

  /** Enlarge about a point of the stage (CSS pixels from its upper left), which keeps its part of the image. */
  zoom(by, { x, y } = { x: this.#stage.clientWidth / 2, y: this.#stage.clientHeight / 2 }) {
    const { scale: fitting } = this.#fitting();
    const scale = clamp(this.#place.scale * by, LEAST * Math.min(fitting, 1), Math.max(MOST_ENLARGED, fitting));
    const growth = scale / this.#place.scale;
    this.#place = this.#held({ scale, x: x - (x - this.#place.x) * growth, y: y - (y - this.#place.y) * growth });
    this.#hasZoom = true;
    this.#soon();
  }

  invert() {
    this.#isInverted = !this.#isInverted;
    this.#hasWindow = true;
    this.#soon();
  }

  /** Back to how the image came. That it was changed in between stays known. */
  reset() {
    this.#restore();
    this.#soon();
  }

  preset(number) {
    const chosen = PRESETS[number - 1];
    if (!chosen || this.#picture.scale.unit !== "HU") return;
    this.#window = { centre: chosen[1], width: chosen[2] };
    this.#hasWindow = true;
    this.#soon();
  }

  /** Do what a key says. Returns whether it is one of the viewer's. */
  press(event) {
    const action = this.#picture ? this.#actionOf(event) : null;
    if (!action) return false;
    event.preventDefault();
    action();
    return true;
  }

  #actionOf({ key, code, shiftKey, repeat, target }) {
    if (key === " ") return target.closest?.("button, a, summary") ? null : () => this.reset();
    if (key.toLowerCase() === "i") return () => { if (!repeat) this.invert(); }; // held, it would flicker
    if (key === "+" || key === "=") return () => this.zoom(KEY_ZOOM);
    if (key === "-") return () => this.zoom(1 / KEY_ZOOM);
    // By place, for Shift makes another sign of it; where Shift is what makes the digit (AZERTY), the digit is a grade.
    const digit = shiftKey && /^Digit[1-5]$/.test(code) && !/^\d$/.test(key) ? Number(code.at(-1)) : 0;
    if (digit) return () => this.preset(digit);
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    if (!arrow) return null;
    const [right, down] = arrow;
    return shiftKey
      ? () => this.drag(this.#window, right * KEY_PIXELS, down * KEY_PIXELS)
      : () => this.pan(right * KEY_PAN, down * KEY_PAN);
  }

  // Behind it ---------------------------------------------------------------------------------------------------

  #card() {
    try {
      return new GLSurface(() => { this.#mount(new CanvasSurface()); this.#soon(); });
    } catch {
      return new CanvasSurface(); // draws the same, on the processor
    }
  }

  #mount(surface) {
    const { canvas } = surface;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Image to be rated");
    canvas.hidden = !this.#picture;
    this.#surface?.canvas.remove();
    this.#surface = surface;
    this.#stage.append(canvas);
    this.#stage.dataset.surface = surface.name;
  }

  #furnish() {
    const presets = this.#bar.querySelector("[data-presets]");
    PRESETS.forEach(([name, centre, width], index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chip tool";
      button.title = `W ${width} L ${centre} HU`;
      const key = document.createElement("kbd");
      key.textContent = `\u21e7${index + 1}`;
      button.append(key, name);
      presets.append(button);
      this.#onClick(button, () => this.preset(index + 1));
    });
    this.#onClick(this.#bar.querySelector("[data-invert]"), () => this.invert());
    this.#onClick(this.#bar.querySelector("[data-reset]"), () => this.reset());
  }

  #onClick(button, act) {
    button.addEventListener("click", () => {
      button.blur(); // as with the grades: no focus ring stays beside the image
      if (this.#picture) act();
    });
  }

  #restore() {
    this.#window = firstWindow(this.#picture);
    this.#isInverted = false;
    this.#place = this.#fitting();
  }

  /** In the middle, as large as fits, on whole screen pixels. */
  #fitting() {
    const { clientWidth, clientHeight } = this.#stage;
    const { columns, rows } = this.#picture;
    const scale = Math.min(clientWidth / columns, clientHeight / rows);
    const whole = (length) => Math.round(length * devicePixelRatio) / devicePixelRatio;
    return { scale, x: whole((clientWidth - columns * scale) / 2), y: whole((clientHeight - rows * scale) / 2) };
  }

  /** The place, moved as little as needed for the middle of the stage to lie on the image. */
  #held({ x, y, scale }) {
    const { clientWidth, clientHeight } = this.#stage;
    const { columns, rows } = this.#picture;
    return {
      scale,
      x: clamp(x, clientWidth / 2 - columns * scale, clientWidth / 2),
      y: clamp(y, clientHeight / 2 - rows * scale, clientHeight / 2),
    };
  }

  #resize() {
    if (!this.#picture) return;
    if (!this.#hasZoom) this.#place = this.#fitting();
    else this.#place = this.#held(this.#place);
    this.#draw();
  }

  #soon() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      if (this.#picture) this.#draw();
    });
  }

  #draw() {
    const { canvas } = this.#surface;
    const ratio = devicePixelRatio;
    const [width, height] = [this.#stage.clientWidth, this.#stage.clientHeight].map((length) => Math.round(length * ratio));
    if (!width || !height) return; // hidden: the observer tells when it is not
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      // Whole screen pixels, also where the stage ends between two: stretched by half a pixel all of it would blur.
      Object.assign(canvas.style, { width: `${width / ratio}px`, height: `${height / ratio}px` });
    }
    const { x, y, scale } = this.#place;
    const place = { x: x * ratio, y: y * ratio, scale: scale * ratio };
    const tone = toneOf(this.#picture, this.#window, this.#isInverted);
    this.#surface.draw(this.#picture, levelFor(this.#picture, place.scale), place, tone);
    const zoom = scale < 10 ? scale.toFixed(scale < 1 ? 2 : 1) : Math.round(scale);
    this.#bar.querySelector("[data-readout]").textContent = `${readout(this.#picture, this.#window)}  ${zoom}x`;
    this.#bar.querySelector("[data-invert]").setAttribute("aria-pressed", this.#isInverted);
  }
}

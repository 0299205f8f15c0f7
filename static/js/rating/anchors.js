/* Examples of the three grades, side by side while a key or a button is held. */

import { Unreachable, bytes, get } from "./api.js";
import { CanvasSurface } from "./canvas2d.js";
import { levelFor } from "./levels.js";
import { label } from "./notices.js";
import { decoded } from "./picture.js";
import { firstWindow, toneOf } from "./window.js";

const RETRY_MS = 10_000;

/** Draw a picture as it comes, as large as fits above its caption. */
function drawWhole({ figure, caption, surface, picture }) {
  const { canvas } = surface;
  const room = { width: figure.clientWidth, height: figure.clientHeight - 2 * caption.offsetHeight };
  const fit = Math.min(room.width / picture.columns, room.height / picture.rows) * devicePixelRatio;
  const [width, height] = [picture.columns, picture.rows].map((length) => Math.max(1, Math.round(length * fit)));
  Object.assign(canvas, { width, height });
  Object.assign(canvas.style, { width: `${width / devicePixelRatio}px`, height: `${height / devicePixelRatio}px` });
  const scale = Math.max(width / picture.columns, height / picture.rows);
  surface.draw(picture, levelFor(picture, scale), { scale, x: 0, y: 0 }, toneOf(picture, firstWindow(picture), false));
}

export class Anchors {
  #overlay;
  #button;
  #figures = []; // {figure, caption, surface, picture}

  /** overlay: what lies over the stage; button: held instead of the key; url: of {"anchors": [{grade, image}]}, may be
      empty where a study has none. */
  constructor(overlay, button, url) {
    this.#overlay = overlay;
    this.#button = button;
    if (url) this.#prefetch(url);
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.show();
    });
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(type, () => this.hide());
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a finger that rests is no right click
    button.addEventListener("click", () => button.blur());
    addEventListener("blur", () => this.hide()); // the key is let go elsewhere
    document.addEventListener("visibilitychange", () => this.hide());
  }

  show() {
    if (!this.#figures.length) return;
    this.#overlay.hidden = false;
    this.#figures.forEach(drawWhole);
  }

  hide() {
    this.#overlay.hidden = true;
  }

  /** Once for the page; again after a while where the network is gone. */
  async #prefetch(url) {
    try {
      const { anchors } = await get(url);
      const pictures = await Promise.all(anchors.map(async ({ image }) => decoded(await bytes(image))));
      anchors.forEach(({ grade }, index) => this.#add(grade, pictures[index]));
    } catch (error) {
      if (error instanceof Unreachable) setTimeout(() => this.#prefetch(url), RETRY_MS);
      return; // refused or broken: the page is the same without examples
    }
    this.#button.hidden = !this.#figures.length;
  }

  #add(grade, picture) {
    const surface = new CanvasSurface();
    surface.canvas.setAttribute("role", "img");
    surface.canvas.setAttribute("aria-label", `Example of ${label(grade)}`);
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = label(grade);
    figure.append(surface.canvas, caption);
    this.#overlay.append(figure);
    this.#figures.push({ figure, caption, surface, picture });
  }
}

/* A break after every so many answers, with the reader's own pace and what is left. It can be switched off, for good, in
   this browser. */

import { duration } from "../duration.js";
import { median } from "./clock.js";

const OFF = "medsyn-no-breaks";

function remembered() {
  try {
    return localStorage.getItem(OFF) !== null;
  } catch {
    return false; // a browser that keeps nothing
  }
}

function remember(isOff) {
  try {
    if (isOff) localStorage.setItem(OFF, "1");
    else localStorage.removeItem(OFF);
  } catch {
    // until the page is closed, then
  }
}

export class Breaks {
  #every;
  #paces = []; // milliseconds of the answers since the last break
  #isOff = remembered();
  #box;

  /** every: answers between two breaks; box: the checkbox that switches them. */
  constructor(every, box) {
    this.#every = every;
    this.#box = box;
    box.checked = !this.#isOff;
    box.addEventListener("change", () => this.#switch(!box.checked));
  }

  #switch(isOff) {
    this.#isOff = isOff;
    this.#box.checked = !isOff;
    remember(isOff);
  }

  /** An image was looked at for so many milliseconds and answered. */
  count(activeMs) {
    this.#paces.push(activeMs);
  }

  /** One answer less: taken back. */
  discount() {
    this.#paces.pop();
  }

  /** What to show now (Interlude), or null where no break is due. `left`: images still to rate; `gapMs`: between them. */
  due(left, gapMs) {
    if (this.#paces.length < this.#every) return null;
    const pace = (median(this.#paces) + gapMs) / 1000;
    const number = this.#paces.length;
    this.#paces = [];
    if (this.#isOff || !left) return null;
    const images = left === 1 ? "1 image is" : `${left} images are`;
    return {
      title: "A break, if you like",
      lines: [
        `${number} images rated in a row, ${pace < 10 ? pace.toFixed(1) : Math.round(pace)} s an image.`,
        `${images} left: about ${duration(pace * left)} at this pace.`,
      ],
      more: { label: "No more breaks", act: () => this.#switch(true) },
    };
  }
}

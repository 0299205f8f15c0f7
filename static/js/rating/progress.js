/* How far the reader has come: done of total, and how long the rest will take. */

import { duration } from "../duration.js";
import { percent } from "../percent.js";
import { median } from "./clock.js";
import { part } from "./page.js";

const PACE_OVER = 20; // images that the remaining time is estimated from

export class Progress {
  done;
  total; // in an open pool it changes with what others read
  #gap; // milliseconds between two images
  #paces; // milliseconds of the last images

  /** pace: milliseconds an image took so far, or NaN; gap: milliseconds between two images. */
  constructor({ done, total, pace, gap }) {
    this.done = done;
    this.total = total;
    this.#gap = gap;
    this.#paces = pace ? [pace] : [];
  }

  get left() {
    return Math.max(this.total - this.done, 0);
  }

  /** An image took so many milliseconds. */
  took(milliseconds) {
    this.#paces.push(milliseconds);
    if (this.#paces.length > PACE_OVER) this.#paces.shift();
  }

  count(change) {
    this.done = Math.max(0, this.done + change);
    this.total = Math.max(this.total, this.done);
    this.show();
  }

  /** Nothing is left, whatever was expected. */
  end() {
    this.total = this.done;
    this.show();
  }

  show() {
    const { done, total, left } = this;
    part("done").textContent = done;
    part("percent").textContent = total ? percent(Math.floor((100 * done) / total)) : "";
    part("total").textContent = total;
    part("bar").max = Math.max(total, 1);
    part("bar").value = done;
    const rest = left && this.#paces.length ? ((median(this.#paces) + this.#gap) / 1000) * left : 0;
    part("left").textContent = rest ? `about ${duration(rest)} left` : "";
  }
}

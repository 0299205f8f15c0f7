/* When and for how long an image was looked at. */

export class Clock {
  shownAt = null; // Date, after the paint
  firstInputAt = null; // Date of the first key or pointer press after it
  #paintedAt = 0; // the paint on performance's clock
  #since = null;
  #total = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#stop();
      else if (this.#since === null) this.#since = performance.now();
    });
    for (const type of ["keydown", "pointerdown"]) {
      addEventListener(type, ({ repeat }) => { if (this.shownAt && !repeat) this.firstInputAt ??= new Date(); }, { capture: true });
    }
  }

  #stop() {
    if (this.#since !== null) this.#total += performance.now() - this.#since;
    this.#since = null;
  }

  /** An image is on the screen as of now. */
  restart() {
    this.shownAt = new Date();
    this.firstInputAt = null;
    this.#paintedAt = performance.now();
    this.#total = 0;
    this.#since = document.hidden ? null : performance.now();
  }

  /** Milliseconds since the paint. */
  get age() {
    return performance.now() - this.#paintedAt;
  }

  /** Milliseconds the page was visible with the image. */
  get active() {
    return Math.round(this.#total + (this.#since === null ? 0 : performance.now() - this.#since));
  }

  /** What an answer stores of it. */
  get times() {
    return {
      shown_at: this.shownAt.toISOString(),
      first_input_at: this.firstInputAt?.toISOString() ?? null,
      active_ms: this.active,
    };
  }
}

/** How the image is shown: CSS pixels, and screen pixels per CSS pixel. */
export const display = () => ({
  viewport_width: Math.max(1, Math.round(innerWidth)),
  viewport_height: Math.max(1, Math.round(innerHeight)),
  device_pixel_ratio: devicePixelRatio,
});

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

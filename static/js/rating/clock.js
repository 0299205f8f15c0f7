/* Milliseconds an image was looked at: only while the page is visible. */

export class Clock {
  #since = null;
  #total = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#stop();
      else if (this.#since === null) this.#since = performance.now();
    });
  }

  #stop() {
    if (this.#since !== null) this.#total += performance.now() - this.#since;
    this.#since = null;
  }

  restart() {
    this.#total = 0;
    this.#since = document.hidden ? null : performance.now();
  }

  get milliseconds() {
    return Math.round(this.#total + (this.#since === null ? 0 : performance.now() - this.#since));
  }
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/* A quiet page between two images, until the reader goes on. */

export class Interlude {
  #root;
  #more;
  #goOn = null;

  /** root: holds [data-title], [data-lines], [data-go-on] and [data-more], a second button that some have. */
  constructor(root) {
    this.#root = root;
    this.#more = root.querySelector("[data-more]");
    root.querySelector("[data-go-on]").addEventListener("click", () => this.goOn());
    this.#more.addEventListener("click", () => this.goOn());
  }

  get isShown() {
    return this.#goOn !== null;
  }

  /** Show {title, lines, more: {label, act}?}; resolves when the reader goes on. */
  show({ title, lines, more = null }, { takesFocus }) {
    this.goOn();
    this.#root.querySelector("[data-title]").textContent = title;
    this.#root.querySelector("[data-lines]").replaceChildren(...lines.map((text) => {
      const line = document.createElement("p");
      line.textContent = text;
      return line;
    }));
    this.#more.hidden = !more;
    this.#more.textContent = more?.label ?? "";
    this.#more.onclick = more?.act ?? null;
    this.#root.hidden = false;
    if (takesFocus) this.#root.querySelector("[data-go-on]").focus();
    return new Promise((resolve) => { this.#goOn = resolve; });
  }

  goOn() {
    this.#root.hidden = true;
    this.#goOn?.();
    this.#goOn = null;
  }
}

/* Defect chips and comment. They belong to the image on the screen, or, after a 1 or 2 without any, to the image before
   it: that is asked for while the next one is already shown. The earlier image itself is not shown again, for it would
   colour the judgement of the present one. */

export class Remarks {
  #root;
  #chips;
  #comment;
  #asked;
  #onChange;
  #onDraft;
  #last = null; // the answer that is asked about
  #draft = { defects: [], comment: "" }; // of the image on the screen

  /** onChange(answer): the reader said something of the answer that is asked about; its remarks are updated.
      onDraft({defects, comment}): something of the image on the screen, half-written comments included. */
  constructor(root, onChange, onDraft) {
    this.#root = root;
    this.#chips = [...root.querySelectorAll("[data-defect]")];
    this.#comment = root.querySelector("[data-comment]");
    this.#asked = root.querySelector("[data-asked]");
    this.#onChange = onChange;
    this.#onDraft = onDraft;
    for (const chip of this.#chips) {
      chip.addEventListener("click", () => {
        chip.blur();
        this.#toggle(chip.dataset.defect);
      });
    }
    this.#comment.addEventListener("change", () => this.flush());
    this.#comment.addEventListener("input", () => {
      if (!this.#last) this.#onDraft({ ...this.#draft, comment: this.#comment.value.trim() });
    });
    this.#comment.addEventListener("keydown", (event) => {
      if (event.isComposing || (event.key !== "Escape" && (event.key !== "Enter" || event.shiftKey))) return;
      event.preventDefault();
      this.#comment.blur(); // stores it
    });
  }

  get isAboutLast() {
    return this.#last !== null;
  }

  /** The comment has the focus. */
  get isWriting() {
    return document.activeElement === this.#comment;
  }

  /** {defects, comment} of the image on the screen. */
  get draft() {
    return { ...this.#draft };
  }

  /** Begin an image: `remarks` it has already, and the answer before it if something is to be asked of that. */
  begin(remarks = {}, last = null) {
    this.#draft = { defects: remarks.defects ?? [], comment: remarks.comment ?? "" };
    this.#last = last;
    this.#show();
  }

  /** Ask no more about the last image, or about that of `id` only. */
  dismiss(id = null) {
    if (id !== null && this.#last?.place.id !== id) return;
    this.#comment.blur();
    this.#last = null;
    this.#show();
  }

  /** The chip of a key, if there is one: toggled. Returns whether there is. */
  press(key) {
    const chip = this.#chips.find((candidate) => candidate.dataset.key === key);
    if (chip) this.#toggle(chip.dataset.defect);
    return Boolean(chip);
  }

  write() {
    this.#comment.focus();
  }

  /** Take what stands in the comment, finished or not. */
  flush() {
    const comment = this.#comment.value.trim();
    if (comment !== (this.#last ?? this.#draft).comment) this.#set({ comment });
  }

  #toggle(code) {
    const { defects } = this.#last ?? this.#draft;
    this.#set({ defects: defects.includes(code) ? defects.filter((other) => other !== code) : [...defects, code] });
  }

  #set(change) {
    const subject = this.#last ?? this.#draft;
    Object.assign(subject, change);
    this.#show();
    if (this.#last) this.#onChange(this.#last);
    else this.#onDraft(this.draft);
  }

  #show() {
    const { defects, comment } = this.#last ?? this.#draft;
    for (const chip of this.#chips) chip.setAttribute("aria-pressed", defects.includes(chip.dataset.defect));
    if (this.#comment.value.trim() !== comment) this.#comment.value = comment;
    this.#root.toggleAttribute("data-about-last", this.isAboutLast);
    this.#asked.textContent = this.isAboutLast ? `of the last image (${this.#last.label})` : "of this image";
  }
}

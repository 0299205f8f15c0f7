/* "Cannot judge": asks why, with one key. */

export class Reasons {
  #dialog;
  #words;
  #onAnswer;

  /** onAnswer({cannot_judge, comment}). */
  constructor(dialog, onAnswer) {
    this.#dialog = dialog;
    this.#words = dialog.querySelector("[data-words]");
    this.#onAnswer = onAnswer;
    const choices = [...dialog.querySelectorAll("[data-reason]")];
    for (const choice of choices) choice.addEventListener("click", () => this.#choose(choice.dataset.reason));
    dialog.addEventListener("keydown", (event) => {
      if (event.target === this.#words && (event.key !== "Enter" || event.isComposing)) return; // of a character
      const choice = event.key === "Enter" && event.target === this.#words
        ? choices.at(-1) // own words and nothing else: another reason
        : choices.find((candidate) => candidate.dataset.key === event.key);
      if (!choice || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.#choose(choice.dataset.reason);
    });
  }

  get isOpen() {
    return this.#dialog.open;
  }

  ask(comment) {
    this.#words.value = comment;
    this.#dialog.showModal();
  }

  /** Ask no more. */
  close() {
    this.#dialog.close();
  }

  #choose(reason) {
    const comment = this.#words.value.trim();
    if (reason === "other" && !comment) {
      this.#words.focus();
      return;
    }
    this.close();
    this.#onAnswer({ cannot_judge: reason, comment });
  }
}

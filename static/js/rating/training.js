/* The training round: images whose grade is known, told after each answer. The answer goes through the outbox like any
   other, so that nothing is lost; but the page waits for the reply, for it holds the grade. Where the connection is gone
   it says so and waits on. */

import { Refused, Unreachable, post, sleep } from "./api.js";
import { label } from "./notices.js";

const DEAF_MS = 150; // after the grade is told: a key pressed before must not go on
const RETRY_MS = 2000;

export class Training {
  #banner;
  #box;
  #buttons;
  #done;
  #total;
  #replies = new Map(); // by client_uuid, of answers that the outbox has sent
  #awaited = null; // {entry, resolve}
  #goOn = null;
  #toldAt = 0;

  /** banner: says how far; box: holds [data-verdict], [data-why], [data-trouble], [data-go-on]; buttons: of the grades. */
  constructor(banner, box, buttons, { done, total }) {
    this.#banner = banner;
    this.#box = box;
    this.#buttons = buttons;
    this.#done = done;
    this.#total = total;
    this.#part("go-on").addEventListener("click", () => this.goOn());
  }

  #part(name) {
    return this.#box.querySelector(`[data-${name}]`);
  }

  /** What to show before the first of its images (Interlude). */
  get beginning() {
    return {
      title: this.#done ? "The training round goes on" : "A training round first",
      lines: [
        `${this.#total - this.#done} images whose grade is known. Rate each as you would in the study; then the known grade is shown, and why.`,
        "The round is not part of the study.",
      ],
    };
  }

  /** What to show after the last of them, before the study's `number` images. */
  ending(number) {
    return {
      title: "The study begins",
      lines: [
        `${number} images. From here on no grade is shown: there is no right answer but yours.`,
        "What you rated in the training round is not part of it.",
      ],
    };
  }

  /** An answer was given, and its grade is awaited or told. */
  get isBusy() {
    return this.#awaited !== null || this.#goOn !== null;
  }

  /** A place comes on the screen: of the training round, or of the study. */
  at(place) {
    const isOn = Boolean(place?.is_training);
    document.body.toggleAttribute("data-in-training", isOn);
    this.#banner.hidden = !isOn;
    const number = Math.min(this.#done + 1, this.#total);
    this.#banner.textContent = `Training ${number} of ${this.#total}: not part of the study`;
  }

  /** The outbox has the server's reply to an entry. */
  heard(entry, reply) {
    if (!entry.place.is_training) return;
    this.#replies.set(entry.body.client_uuid, reply);
    this.#settle();
  }

  /** How it stands with the outbox: what keeps the awaited answer, or that another window has sent it. */
  look(outbox) {
    if (!this.#awaited) return;
    if (!this.#awaited.isAsking) this.#say(outbox.trouble);
    this.#settle();
    const isSent = !outbox.entries.some(({ body }) => body.client_uuid === this.#awaited?.entry.body.client_uuid);
    if (isSent && this.#awaited && !this.#awaited.isAsking) this.#ask();
  }

  #say(trouble) {
    const remedy = trouble?.needsSignIn ? "; sign in in another window" : "";
    this.#part("trouble").textContent = trouble
      ? `The grade comes with the server's reply: ${trouble.message}. Your answer is kept${remedy}.`
      : "";
  }

  #settle() {
    const reply = this.#replies.get(this.#awaited?.entry.body.client_uuid);
    if (!reply) return;
    const { resolve } = this.#awaited;
    this.#awaited = null;
    resolve(reply.feedback ?? null);
  }

  /** Another window sent the answer and has the reply; sent again, it changes nothing and the same reply comes. */
  async #ask() {
    const { entry } = this.#awaited;
    this.#awaited.isAsking = true;
    while (this.#awaited?.entry === entry) {
      try {
        this.heard(entry, await post(entry.url, entry.body));
        return;
      } catch (error) {
        if (error instanceof Refused) return; // the outbox was told so too, and whoever asked is cut short
        if (!(error instanceof Unreachable)) throw error;
        if (this.#awaited?.entry === entry) this.#say(error);
        await sleep(RETRY_MS);
      }
    }
  }

  /** Wait for the grade of an answered place, tell it, wait until the reader goes on. Returns false where that was cut
      short (dismiss). */
  async teach(entry, given) {
    this.#box.hidden = false;
    this.#part("verdict").textContent = "Waiting for the known grade";
    this.#part("why").textContent = "";
    this.#part("trouble").textContent = "";
    this.#part("go-on").hidden = true;
    const feedback = await new Promise((resolve) => {
      this.#awaited = { entry, resolve };
      this.#settle();
    });
    if (feedback === false) return false;
    this.#done += 1;
    const hasGoneOn = await this.#tell(feedback, given);
    this.#clear();
    return hasGoneOn;
  }

  #tell(feedback, given) {
    this.#toldAt = performance.now();
    this.#part("trouble").textContent = "";
    this.#part("go-on").hidden = false;
    if (feedback) {
      const isRight = feedback.gold === given;
      this.#part("verdict").textContent = isRight
        ? `Yes: ${label(feedback.gold)}.`
        : `It is ${label(feedback.gold)}. You said ${given ? label(given) : "it cannot be judged"}.`;
      this.#part("why").textContent = feedback.rationale;
      this.#buttons.find((button) => Number(button.dataset.grade) === feedback.gold)?.setAttribute("data-known", "");
    } else {
      this.#part("verdict").textContent = "The known grade was taken away in the meantime.";
    }
    return new Promise((resolve) => { this.#goOn = resolve; });
  }

  #clear() {
    this.#box.hidden = true;
    for (const button of this.#buttons) button.removeAttribute("data-known");
  }

  /** The reader goes on, once the grade was there to be read. */
  goOn() {
    if (!this.#goOn || performance.now() - this.#toldAt < DEAF_MS) return;
    this.#goOn(true);
    this.#goOn = null;
  }

  /** Something else came in between: a refusal, another window. */
  dismiss() {
    this.#awaited?.resolve(false);
    this.#goOn?.(false);
    this.#awaited = this.#goOn = null;
    this.#clear();
  }
}

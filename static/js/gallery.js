/* The gallery of a running job: asks for its images again whenever the progress bar has heard news.
   The answer is HTML of this server; what was unfolded stays so, and images that are there already are kept. */

import { NoAnswer, page } from "./server.js";

const gallery = document.getElementById("gallery");
let busy = false;

/** What tells a link or the head of a fold from the others, before and after. */
const nameOf = (element) => element.href ?? element.closest("details[data-fold]")?.dataset.fold;

function adopt(fresh) {
  const known = new Map([...gallery.querySelectorAll("a.image-card")].map((card) => [card.href, card.closest("li")]));
  for (const card of fresh.querySelectorAll("a.image-card")) {
    const old = known.get(card.href);
    if (old) card.closest("li").replaceWith(old); // no flicker: the picture is loaded
  }
  for (const fold of fresh.querySelectorAll("details[data-fold]")) {
    fold.open = gallery.querySelector(`details[data-fold="${fold.dataset.fold}"]`)?.open ?? false;
  }
  const focused = gallery.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  gallery.replaceChildren(...fresh.body.children);
  if (focused) [...gallery.querySelectorAll("a, summary")].find((element) => nameOf(element) === focused)?.focus();
}

async function refresh() {
  if (busy) return;
  busy = true;
  try {
    const fresh = await page(gallery.dataset.url);
    const drawn = fresh.querySelector("[data-drawn]").dataset.drawn;
    if (drawn === gallery.querySelector("[data-drawn]").dataset.drawn) return;
    adopt(fresh);
    gallery.dispatchEvent(new CustomEvent("gallery:update"));
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error; // the progress bar tells of lost connections and sign-outs
  } finally {
    busy = false;
  }
}

document.addEventListener("progress:update", refresh);

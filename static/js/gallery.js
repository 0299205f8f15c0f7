/* The gallery of a running job: asks for its images again whenever the progress bar has heard news.
   The answer is HTML of this server; what was unfolded stays so, and images that are there already are kept. */

const gallery = document.getElementById("gallery");
let busy = false;

function adopt(fresh) {
  const known = new Map([...gallery.querySelectorAll("a.image-card")].map((card) => [card.href, card.closest("li")]));
  for (const card of fresh.querySelectorAll("a.image-card")) {
    const old = known.get(card.href);
    if (old) card.closest("li").replaceWith(old); // no flicker: the picture is loaded
  }
  for (const fold of fresh.querySelectorAll("details[data-fold]")) {
    fold.open = gallery.querySelector(`details[data-fold="${fold.dataset.fold}"]`)?.open ?? false;
  }
  const focused = document.activeElement?.closest?.("#gallery a")?.href;
  gallery.replaceChildren(...fresh.body.children);
  if (focused) [...gallery.querySelectorAll("a")].find((link) => link.href === focused)?.focus();
}

async function refresh() {
  if (busy) return;
  busy = true;
  try {
    const response = await fetch(gallery.dataset.url, { credentials: "same-origin" });
    if (!response.ok) return; // the progress bar tells of lost connections and sign-outs
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const drawn = fresh.querySelector("[data-drawn]").dataset.drawn;
    if (drawn === gallery.querySelector("[data-drawn]").dataset.drawn) return;
    adopt(fresh);
    gallery.dispatchEvent(new CustomEvent("gallery:update"));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // fetch gives a TypeError where the network is away
  } finally {
    busy = false;
  }
}

document.addEventListener("progress:update", refresh);

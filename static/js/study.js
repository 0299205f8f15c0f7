/* A study's page keeps itself up to date: the parts marked data-live are taken from the page anew every 15 s while it is
   looked at, and the summary of the agreement page is put in once it has been computed. Without this module the page
   is as right as when it was loaded, and agreement is one click away. */

const EVERY_MS = 15_000;

async function documentAt(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok || response.redirected) return null; // signed out, or the study is gone: leave what is shown
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

async function refresh() {
  const fresh = await documentAt(location.href);
  for (const part of fresh ? document.querySelectorAll("[data-live]") : []) {
    const newer = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (newer && newer.innerHTML !== part.dataset.seen) {
      part.dataset.seen = newer.innerHTML;
      part.replaceChildren(...newer.childNodes);
    }
  }
}

async function showAgreement(box) {
  const page = await documentAt(box.dataset.agreement);
  const summary = page?.querySelector("[data-summary]");
  if (summary) box.replaceChildren(summary);
}

/** Wait for `work`; without a network nothing happens, and what is shown stays. */
async function tolerant(work) {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // fetch says TypeError where the server cannot be reached
  }
}

async function keepFresh() {
  if (!document.hidden) await tolerant(refresh());
  setTimeout(keepFresh, EVERY_MS);
}

setTimeout(keepFresh, EVERY_MS);
for (const box of document.querySelectorAll("[data-agreement]")) tolerant(showAgreement(box));

/* A study's page keeps itself up to date: the parts marked data-live are taken from the page anew every 15 s while it is
   looked at, and the summary of the agreement page is put in once it has been computed, anew at most once a minute
   while ratings come in. Without this module the page is as right as when it was loaded, and agreement is one click
   away. */

const EVERY_MS = 15_000;
const AGREEMENT_EVERY_MS = 60_000;
const box = document.querySelector("[data-agreement]");
let agreementAt = 0;
let isAgreementOld = true;

async function documentAt(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok || response.redirected) return null; // signed out, or the study is gone: leave what is shown
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

async function refresh() {
  const fresh = await documentAt(location.href);
  for (const part of fresh ? document.querySelectorAll("[data-live]") : []) {
    const newer = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (!newer || newer.innerHTML === part.dataset.seen) continue;
    isAgreementOld ||= part.dataset.live === "grades" && part.innerHTML !== newer.innerHTML;
    part.dataset.seen = newer.innerHTML;
    part.replaceChildren(...newer.childNodes);
  }
}

async function showAgreement() {
  if (!box || !isAgreementOld || Date.now() - agreementAt < AGREEMENT_EVERY_MS) return;
  agreementAt = Date.now();
  const fresh = await documentAt(box.dataset.agreement);
  if (!fresh) return; // asked again a minute later
  isAgreementOld = false;
  const summary = fresh.querySelector("[data-summary]");
  if (summary) box.replaceChildren(summary);
}

async function keepFresh(look) {
  try {
    if (!document.hidden) await look();
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // no network (fetch says TypeError): what is shown stays
  } finally {
    setTimeout(() => keepFresh(() => refresh().then(showAgreement)), EVERY_MS);
  }
}

keepFresh(showAgreement);
